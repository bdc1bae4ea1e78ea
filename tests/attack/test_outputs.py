"""Models as people have them: mappings, tuples, a single logit, batches of one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import convnet, predicted
from torch import Tensor, nn

from sdsgsm_fast import BIM, SDSGSM, Ensemble, MinimalSDSGSM, Occlusion, occlusion_map, occlusion_scores


@pytest.fixture
def images() -> Tensor:
    return torch.rand(10, 3, 16, 16)


class Wrapped(nn.Module):
    """A network whose output comes in some shape."""

    def __init__(self, net: nn.Module, wrap: Any) -> None:
        super().__init__()
        self.net, self.wrap = net, wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.net(x))


@pytest.mark.parametrize(
    "wrap",
    [lambda z: {"logits": z, "features": None}, lambda z: SimpleNamespace(logits=z)],
    ids=["mapping", "attribute"],
)
def test_outputs_that_hold_logits(wrap: Any, images: Tensor) -> None:
    net = convnet()
    labels = predicted(net, images)
    model = Wrapped(net, wrap)
    for attack in (BIM, SDSGSM):
        assert torch.allclose(attack(model)(images, labels), attack(net)(images, labels), atol=1e-6)
    assert torch.allclose(occlusion_map(model, images), occlusion_map(net, images), atol=1e-5)


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (lambda z: (z, None), r"found a tuple of \(Tensor, NoneType\); wrap it .* lambda x: model\(x\)\[0\]"),
        (lambda z: [z, z], r"found a list of \(Tensor, Tensor\)"),
        (lambda z: {"scores": z}, 'a mapping with "logits", found dict with \'scores\''),
        (lambda z: {}, "found dict with nothing"),
        (lambda z: "cat", "found str"),
        (lambda z: None, "found NoneType"),
        (lambda z: {"logits": [1, 2]}, "found dict with 'logits'"),
    ],
)  # fmt: skip
def test_outputs_that_do_not(wrap: Any, message: str, images: Tensor) -> None:
    model = Wrapped(convnet(), wrap)
    with pytest.raises(TypeError, match="model: expected .*" + message):
        BIM(model)(images, torch.zeros(10, dtype=torch.int64))
    with pytest.raises(TypeError, match="model: expected .*" + message):
        occlusion_map(model, images)


class Single(nn.Module):
    """One logit: the difference of two."""

    def __init__(self) -> None:
        super().__init__()
        self.net = convnet(classes=2, spread=0.3)

    def forward(self, x: Tensor) -> Tensor:
        z = self.net(x)
        return z[:, 1:] - z[:, :1]


def test_a_single_logit_means_two_classes(images: Tensor) -> None:
    model = Single().eval()
    with torch.no_grad():
        z = model(images)[:, 0]
    labels = (z > 0).long()
    assert labels.min() == 0
    assert labels.max() == 1
    for kind in (BIM, SDSGSM, MinimalSDSGSM):
        result = kind(model, eps=0.1).run(images, labels)
        assert not result.skipped.any()
        with torch.no_grad():
            assert torch.equal((model(result.adv)[:, 0] > 0).long() != labels, result.success)
        assert result.success.any()
    x = images.clone().requires_grad_()
    (g,) = torch.autograd.grad(F.binary_cross_entropy_with_logits(model(x)[:, 0], labels.float(), reduction="sum"), x)
    one = BIM(model, eps=0.02, alpha=0.01, steps=1, early_stop=False)(images, labels)
    assert torch.allclose(one, (images + 0.01 * g.sign()).clamp(0, 1), atol=1e-6)
    scores = occlusion_scores(model, images, labels, patch=8, score="prob")
    with torch.no_grad():
        hidden = images.clone()
        hidden[:, :, :8, :8] = 0
        p = [torch.where(labels > 0, model(x)[:, 0], -model(x)[:, 0]).sigmoid() for x in (images, hidden)]
    assert torch.allclose(scores[:, 0, 0], p[0] - p[1], atol=1e-6)
    target = 1 - labels
    assert BIM(model, eps=0.1).run(images, labels, target=target).success.any()
    both = Ensemble([model, model])
    assert torch.allclose(BIM(both)(images, labels), BIM(model)(images, labels), atol=1e-6)


class OnlyOne(nn.Module):
    """A model that takes no larger batches."""

    def __init__(self) -> None:
        super().__init__()
        self.net = convnet()

    def forward(self, x: Tensor) -> Tensor:
        if len(x) != 1:
            raise RuntimeError("one image at a time")
        return self.net(x)


@pytest.mark.parametrize("precision", ["auto", "float32"])
def test_batches_of_one(precision: str, images: Tensor) -> None:
    model = OnlyOne()
    labels = predicted(model.net, images)
    common: dict[str, Any] = {"batch_size": 1, "precision": precision}
    for kind, settings in ((BIM, {}), (SDSGSM, {"domain": Occlusion(patch=8)}), (MinimalSDSGSM, {"levels": 256})):
        result = kind(model, **common, **settings).run(images, labels)
        expected = kind(model.net, **settings).run(images, labels)
        assert torch.equal(result.success, expected.success)
        assert result.metrics().success_rate_8bit == pytest.approx(expected.metrics().success_rate_8bit)
    found = occlusion_map(model, images, labels, **common)
    assert torch.allclose(found, occlusion_map(model.net, images, labels), atol=1e-5)
    with pytest.raises(ValueError, match="batch_size: expected an integer of at least 1"):
        occlusion_map(model, images, batch_size=0)
    streamed = list(BIM(model, **common).stream([(images, labels)]))
    assert torch.equal(streamed[0].success, BIM(model.net).run(images, labels).success)


@pytest.mark.parametrize("kind", ["mapping", "single"])
def test_such_models_are_traced(kind: str, images: Tensor) -> None:
    model = Single().eval() if kind == "single" else Wrapped(convnet(), lambda z: {"logits": z})
    attack = BIM(model)
    labels = torch.zeros(10, dtype=torch.int64)
    attack.run(images, labels)
    assert attack.search.surrogate_for(images) is not None
    dense = occlusion_scores(model, images, labels, patch=6, method="dense")
    assert torch.allclose(occlusion_scores(model, images, labels, patch=6, method="incremental"), dense, atol=1e-5)
