"""Occlusion maps equal Captum's, on every path, and the scores are METHOD.md's."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
import torch
from nets import Looking, convnet, linear_net, predicted, strided_net
from torch import Tensor, nn

from sdsgsm_fast import Occlusion, decision_domain, occlusion_map, occlusion_scores
from sdsgsm_fast.common.windows import Windows
from sdsgsm_fast.occlusion import dense

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from captum.attr import Occlusion as CaptumOcclusion


def captum_map(
    model: nn.Module, x: Tensor, y: Tensor, patch: tuple[int, int], stride: tuple[int, int],
    fill: float, score: str,
) -> Tensor:  # fmt: skip
    def forward(images: Tensor) -> Tensor:
        z = model(images)
        return {"prob": z.softmax(1), "log_prob": z.log_softmax(1), "logit": z}[score]

    channels = x.shape[1]
    with torch.no_grad():
        attributed = CaptumOcclusion(forward).attribute(
            x,
            sliding_window_shapes=(channels, *patch),
            strides=(channels, *stride),
            baselines=fill,
            target=y,
        )
    return attributed[:, 0]


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (convnet(spread=0.1), (3, 3, 16, 16)),
        (convnet().double(), (3, 3, 15, 18)),
        (strided_net(1), (2, 1, 19, 14)),
        (linear_net(2 * 9 * 11), (4, 2, 9, 11)),
    ],
    ids=["convnet", "float64", "strided", "linear"],
)
@pytest.mark.parametrize(("patch", "stride"), [((4, 4), (4, 4)), ((5, 3), (2, 3)), ((4, 4), (3, 1)), ((9, 9), (1, 1))])
@pytest.mark.parametrize(("score", "fill"), [("prob", 0.0), ("log_prob", 0.5), ("logit", 0.25)])
def test_equals_captum(
    net: nn.Module,
    shape: tuple[int, ...],
    patch: tuple[int, int],
    stride: tuple[int, int],
    score: str,
    fill: float,
    backend: str,
) -> None:
    images = torch.rand(shape, dtype=next(net.parameters()).dtype)
    if images.dtype == torch.float64 and backend == "triton":
        with pytest.raises(ValueError, match=r"'triton' does not take torch\.float64"):
            occlusion_map(net, images, patch=patch, stride=stride, backend=backend)
        return
    images = images[: 1 if backend == "triton" else None]  # its interpreter is slow
    labels = predicted(net, images)
    found = occlusion_map(net, images, labels, patch=patch, stride=stride, score=score, fill=fill, backend=backend)
    expected = captum_map(net, images, labels, patch, stride, fill, score)
    assert found.shape == (len(images), *shape[2:])
    assert float((found - expected).abs().max()) <= 1e-6
    assert float(expected.abs().max()) > 1e-4, "the map is not trivially zero"


def test_scores_by_hand(backend: str) -> None:
    """Equation 1 window by window, with normalisation and a fill for each channel."""
    net, images = convnet(), torch.rand(2, 3, 10, 9)
    labels, fill, mean, std = (
        torch.tensor([1, 3]),
        (0.1, 0.5, 0.9),
        (0.4, 0.5, 0.6),
        (0.2, 0.3, 0.4),
    )
    column = [torch.tensor(v)[:, None, None] for v in (fill, mean, std)]

    def logits(x: Tensor) -> Tensor:
        with torch.no_grad():
            return net((x - column[1]) / column[2])

    def margin(z: Tensor) -> Tensor:
        best = z.clone()
        best[range(2), labels] = -torch.inf
        return z[range(2), labels] - best.max(1).values

    found = occlusion_scores(
        net, images, labels,
        patch=(4, 3), stride=(3, 3), score="margin", fill=fill, mean=mean, std=std,
        backend=backend,
    )  # fmt: skip
    windows = Windows.over(10, 9, (4, 3), (3, 3))
    assert found.shape == (2, windows.rows, windows.cols)
    for k, (rows, cols) in enumerate(windows):
        occluded = images.clone()
        occluded[:, :, rows, cols] = column[0]
        expected = margin(logits(images)) - margin(logits(occluded))
        assert torch.allclose(found.flatten(1)[:, k], expected, atol=2e-5)


def test_labels_default_to_the_predicted_classes() -> None:
    net, images = convnet(), torch.rand(3, 3, 12, 12)
    assert torch.equal(occlusion_map(net, images), occlusion_map(net, images, predicted(net, images)))


def test_models_may_return_an_object_with_logits() -> None:
    net, images = convnet(), torch.rand(2, 3, 8, 8)
    wrapped = occlusion_map(lambda x: SimpleNamespace(logits=net(x)), images)
    assert torch.equal(wrapped, occlusion_map(net, images))


def test_float64_models_and_images_stay_float64() -> None:
    net, images = convnet().double(), torch.rand(2, 3, 8, 8, dtype=torch.float64)
    assert occlusion_map(net, images).dtype == torch.float64


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    net, images = Looking(convnet(spread=0.1)), torch.rand(5, 3, 12, 12)
    whole = occlusion_scores(net, images, patch=4)
    for chunk in (1, 4, 7, 9, 20, 1000):
        monkeypatch.setattr(dense, "CPU_CHUNK", chunk)
        assert torch.allclose(occlusion_scores(net, images, patch=4), whole, atol=1e-6)


def test_max_memory_shrinks_the_chunks() -> None:
    net, images = Looking(convnet(spread=0.1)), torch.rand(4, 3, 32, 32)
    largest = 0

    def spy(_: nn.Module, inputs: tuple[Tensor], __: Tensor) -> None:
        nonlocal largest
        largest = max(largest, len(inputs[0]))

    handle = net.register_forward_hook(spy)
    free = occlusion_scores(net, images)
    assert 16 <= largest <= dense.CPU_CHUNK
    largest = 0
    bounded = occlusion_scores(net, images, max_memory=1_000_000)
    handle.remove()
    # One copy needs 12 kB itself and, in its widest layer, twice 64 kB.
    assert largest <= 7
    assert torch.allclose(free, bounded, atol=1e-6)


def test_out_of_memory_halves_the_chunk() -> None:
    net, images = convnet(spread=0.1), torch.rand(3, 3, 12, 12)
    sizes = []

    def model(x: Tensor) -> Tensor:
        assert bool(x.isfinite().all()), "looks at the data: no trace"
        sizes.append(len(x))
        if len(x) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return net(x)

    assert torch.allclose(occlusion_scores(model, images, patch=3), occlusion_scores(net, images, patch=3), atol=1e-6)
    assert max(sizes[sizes.index(4) :]) <= 4, "once halved, the chunk stays so"

    tried = []

    def hopeless(x: Tensor) -> Tensor:
        assert bool(x.isfinite().all()), "looks at the data: no trace"
        tried.append(len(x))
        if len(tried) > 1:  # the clean pass goes through, no chunk of windows does
            raise torch.OutOfMemoryError("CUDA out of memory")
        return net(x)

    with pytest.raises(torch.OutOfMemoryError):
        occlusion_scores(hopeless, images, patch=3)
    assert tried == [3, 2, 48, 32, 16, 8, 4, 2, 1], "the second looks at what a pass leaves behind"


def test_progress_ends_at_the_total() -> None:
    calls = []
    occlusion_scores(convnet(), torch.rand(3, 3, 12, 12), progress=lambda *call: calls.append(call))
    assert calls[-1] == ("occlusion", 27, 27)
    assert [done for _, done, _ in calls] == sorted(done for _, done, _ in calls)


def test_bfloat16_is_close_and_float32_is_auto() -> None:
    net, images = convnet(), torch.rand(4, 3, 16, 16)
    strict = occlusion_map(net, images, precision="float32")
    assert torch.equal(occlusion_map(net, images, precision="auto"), strict)
    reduced = occlusion_map(net, images, precision="bfloat16")
    assert not torch.equal(reduced, strict)
    assert float((reduced - strict).abs().max()) < 0.05


def test_empty_batch() -> None:
    none = torch.empty(0, 3, 16, 16)
    labels = torch.empty(0, dtype=torch.int64)
    assert occlusion_map(convnet(), none, labels).shape == (0, 16, 16)
    assert occlusion_scores(convnet(), none, labels).shape == (0, 4, 4)


def test_top_takes_the_first_of_equals_and_just_enough() -> None:
    domain = decision_domain(torch.zeros(1, 5, 6), rule="top", coverage=0.1)
    assert domain.flatten().tolist() == [1.0] * 3 + [0.0] * 27  # 0.1·30 is not 4
    height = torch.tensor([[[3.0, 1.0, 3.0], [2.0, 2.0, 2.0]]])
    domain = decision_domain(height, rule="top", coverage=0.5)
    assert domain.tolist() == [[[1, 0, 1], [1, 0, 0]]]


def test_rules_fall_back_where_nothing_is_sensitive() -> None:
    flat = -torch.rand(2, 4, 4)
    for rule in ("threshold", "soft"):
        assert torch.equal(decision_domain(flat, rule=rule), torch.ones(2, 4, 4))
    flips = torch.zeros(2, 2, 2, dtype=torch.bool)
    flips[0, 1, 0] = True
    found = decision_domain(flat, rule="flip", flips=flips, patch=2, coverage=0.25)
    expected = torch.zeros(4, 4)
    expected[2:, :2] = 1
    assert torch.equal(found[0], expected)
    assert torch.equal(found[1], decision_domain(flat[1:], coverage=0.25)[0])


def test_the_domain_object_is_a_callable_of_its_own() -> None:
    from sdsgsm_fast.model.classifier import Classifier

    net, images = convnet(), torch.rand(2, 3, 16, 16)
    labels = predicted(net, images)
    sensitivity_map = occlusion_map(net, images, labels, patch=4, stride=2, score="logit")
    domain = Occlusion(patch=4, stride=2, score="logit", coverage=0.3)
    found = domain(Classifier(net), images, labels)
    assert torch.equal(found, decision_domain(sensitivity_map, coverage=0.3))
