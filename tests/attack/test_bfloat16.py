"""Searches in bfloat16, as CPUs that gain from it do by themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import zoo
from nets import convnet, predicted
from torch import Tensor, nn

from sdsgsm_fast import BIM, PGD, SDSGSM, Gradient, SmoothingOnly
from sdsgsm_fast.engine.surrogate import Surrogate
from sdsgsm_fast.model.classifier import Classifier

pytestmark = pytest.mark.usefixtures("bfloat16_pays")


def wide() -> nn.Module:
    """Enough channels for Winograd's products, a residual and a stride."""
    parts = {"a": zoo.conv(3, 64), "b": zoo.conv(64, 64), "c": zoo.conv(64, 33, stride=2)}
    return zoo.Net(lambda m, x: m["c"]((m["b"](m["a"](x)) + m["a"](x)).relu()), parts, 33).eval()


def batch(count: int = 24) -> tuple[nn.Module, Tensor, Tensor]:
    net, images = wide(), torch.rand(count, 3, 16, 16)
    return net, images, predicted(net, images)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [(BIM, {}), (PGD, {"seed": 1, "restarts": 2}), (SmoothingOnly, {"loss": "margin"}), (SDSGSM, {}),
     (SDSGSM, {"domain": Gradient()}), (SDSGSM, {"early_stop": False})],
)  # fmt: skip
def test_the_verdict_is_the_models(kind: Any, settings: dict[str, Any]) -> None:
    net, images, labels = batch()
    labels[:3] = (labels[:3] + 1) % 4  # not to be attacked
    attack = kind(net, eps=0.05, steps=8, **settings)
    found = attack.run(images, labels)
    strict = kind(net, eps=0.05, steps=8, precision="float32", **settings).run(images, labels)
    search = attack.search.surrogate_for(images)
    assert search is not None
    assert search.dtype == torch.bfloat16
    assert torch.equal(found.skipped, strict.skipped)
    assert torch.equal(found.success, (predicted(net, found.adv) != labels) & ~found.skipped)
    assert abs(int(found.success.sum()) - int(strict.success.sum())) <= 2
    assert float((found.adv - images).abs().max()) <= 0.05 + 1e-6
    assert not torch.equal(found.adv, strict.adv), "else nothing here is in bfloat16"


def test_results_do_not_depend_on_the_batch() -> None:
    net, images, labels = batch()
    attack = BIM(net, eps=0.05, steps=8)
    together = attack.run(images, labels)
    order = torch.randperm(len(images))
    for rows in (order, order[:5], order[7:8]):
        part = attack.run(images[rows], labels[rows])
        assert torch.equal(part.updates, together.updates[rows])
        assert torch.equal(part.success, together.success[rows])
        assert torch.equal(part.adv, together.adv[rows])


def test_a_trace_in_float32_gives_the_verdicts_that_are_clear() -> None:
    net, images, labels = batch()
    search = Surrogate(Classifier(net), images, torch.bfloat16, "auto")
    assert search.strict is not None
    assert search.strict.network.dtype == torch.float32
    assert search.strict.uncertainty < 1e-3 < search.uncertainty
    classifier = Classifier(net)
    classifier.surrogate = search
    logits, passes = classifier.verdicts(images)
    assert torch.equal(logits.argmax(1), labels)
    assert torch.all(passes == 1)
    search.strict.exact = False  # all is in doubt
    logits, passes = classifier.verdicts(images)
    assert torch.equal(logits, net(images))
    assert torch.all(passes == 2)
    assert classifier.forwards == 3 * len(images)


def test_passes_of_verdicts_are_counted() -> None:
    net, images, labels = batch()
    result = BIM(net, eps=0.05, steps=8).run(images, labels)
    strict = BIM(net, eps=0.05, steps=8, precision="float32").run(images, labels)
    # A look at the clean image and one at each version of it; then a verdict on either end.
    least = strict.passes.forward + 1 + result.updates - strict.updates
    assert torch.all(result.passes.forward >= least)
    assert torch.equal(result.passes.backward, result.updates)


def test_models_with_jumps_judge_themselves() -> None:
    net = nn.Sequential(convnet(), nn.Identity()).eval()
    jumping = zoo.Net(lambda m, x: m["a"](x).round(), {"a": zoo.conv(3, 8)}, 8).eval()
    images = torch.rand(4, 3, 16, 16)
    assert Surrogate(Classifier(net), images, torch.bfloat16, "auto").strict is not None
    assert Surrogate(Classifier(jumping), images, torch.bfloat16, "auto").strict is None
