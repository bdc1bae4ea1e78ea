"""Verdicts, scores and budgets keep their meaning in every dtype and precision."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from nets import convnet, predicted
from torch import Tensor, nn

from sdsgsm_fast import BIM, PGD, SDSGSM, Gradient, Occlusion, _native_cpu, occlusion_scores, ops
from sdsgsm_fast.model.classifier import Classifier

HALVES = [torch.float16, torch.bfloat16]


class Close(nn.Module):
    """Class 1 wins by 0.02 in float32; in bfloat16 the two logits are equal and class 0 wins."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(1, 192))

    def forward(self, x: Tensor) -> Tensor:
        a = F.linear(x.flatten(1), self.weight)
        return torch.cat([a, a], 1) + torch.tensor([[0.0, 0.02]]).to(a)


def test_only_the_full_precision_is_fooled() -> None:
    """In bfloat16 every image looks misclassified and fooled; in float32 none ever is."""
    images, labels = torch.rand(6, 3, 8, 8), torch.ones(6, dtype=torch.int64)
    for attack in (
        BIM(Close(), steps=3, precision="bfloat16"),
        PGD(Close(), steps=3, precision="bfloat16", seed=0),
        SDSGSM(Close(), steps=3, precision="bfloat16", early_stop=False),
    ):
        result = attack.run(images, labels)
        assert not result.skipped.any()
        assert not result.success.any()
        assert torch.all(result.updates == 3)


def test_the_search_runs_in_bfloat16() -> None:
    seen = set()

    def model(x: Tensor) -> Tensor:
        assert bool(x.isfinite().all())  # what looks at its data has no trace: it runs itself
        y = F.linear(x.flatten(1), torch.eye(5, 192) - 0.01)
        seen.add(y.dtype)
        return y

    images = torch.rand(4, 3, 8, 8)
    BIM(model, steps=2)(images, model(images).argmax(1))
    assert seen == {torch.float32}
    BIM(model, steps=2, precision="bfloat16")(images, model(images).argmax(1))
    assert seen == {torch.float32, torch.bfloat16}


def test_bfloat16_scores_are_differences_within_bfloat16() -> None:
    """A window that changes nothing scores 0, and flips nothing, also under bfloat16."""
    model = Close()
    images, labels = torch.rand(4, 3, 8, 8), torch.ones(4, dtype=torch.int64)
    images[:, :, :4, :4] = 0
    for rule in ("top", "flip"):
        attack = SDSGSM(
            model,
            steps=1,
            precision="bfloat16",
            domain=Occlusion(patch=4, rule=rule, score="logit"),
        )
        result = attack.run(images, labels)
        assert torch.all(result.scores[:, 0, 0] == 0)
        alone = occlusion_scores(model, images, labels, patch=4, score="logit", precision="bfloat16")
        assert torch.equal(result.scores, alone)
        assert torch.allclose(result.domain.mean((1, 2)), torch.tensor(0.25))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES], ids=str)
@pytest.mark.parametrize("normalisation", [{}, {"mean": (0.4, 0.5, 0.6), "std": 0.23}])
def test_a_window_that_holds_the_fill_scores_0(
    dtype: torch.dtype, normalisation: dict[str, object], backend: str
) -> None:
    if dtype == torch.float64 and backend == "triton":
        backend = "auto"  # Triton has no float64
    images = torch.rand(3, 3, 16, 16).to(dtype)
    images[:, :, 4:8, 8:12] = 0.25
    scores = occlusion_scores(
        convnet(spread=0.1),
        images,
        patch=4,
        fill=0.25,
        score="logit",
        backend=backend,
        **normalisation,
    )
    assert float(scores[:, 1, 2].abs().max()) <= 2e-6  # batch sizes differ in the last bit
    assert float(scores.abs().max()) > 1e-3


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("eps", [2 / 255, 8 / 255])
def test_16_bit_images_keep_their_budget_and_move(dtype: torch.dtype, eps: float) -> None:
    """The iterate is float32: steps below the dtype's resolution add up, and none is too long."""
    net = convnet()
    images = torch.rand(16, 3, 16, 16).mul(0.4).add(0.55).to(dtype)
    labels = predicted(net, images.float())
    for attack in (BIM(net, eps=eps, early_stop=False), PGD(net, eps=eps, seed=0)):
        result = attack.run(images, labels)
        moved = (result.adv.double() - images.double()).abs()
        assert result.adv.dtype == dtype
        assert float(moved.max()) <= eps + 1e-7
        assert float(moved.mean()) > 0.3 * eps
        assert torch.equal(result.success, predicted(net, result.adv.float()) != labels)
        assert torch.equal(result.judge(result.adv, torch.arange(16)), result.success)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_bounds_that_are_no_16_bit_values(dtype: torch.dtype) -> None:
    net, bounds = convnet(), (-2.1179, 2.64)
    images = (torch.randn(8, 3, 16, 16) * 2).to(dtype).clamp(*bounds)
    attack = BIM(net, eps=0.3, bounds=bounds)
    result = attack.run(images, predicted(net, images.float()))
    attack.run(result.adv, predicted(net, result.adv.float()))
    assert float(result.adv.min()) >= float(torch.tensor(bounds[0]).to(dtype))
    assert float(result.adv.max()) <= float(torch.tensor(bounds[1]).to(dtype))


def test_gradients_of_16_bit_images_do_not_underflow() -> None:
    """∇L of confident images is far below the range of float16."""
    net = convnet(spread=20.0)
    images = torch.rand(8, 3, 16, 16)
    labels = predicted(net, images)
    wide, narrow = (BIM(net, eps=0.1).run(x, labels) for x in (images, images.half()))
    assert abs(int(wide.success.sum()) - int(narrow.success.sum())) <= 1
    domain = Gradient(rule="soft").of(torch.full((1, 3, 2, 2), 3e4).half())
    assert torch.equal(domain, torch.ones(1, 2, 2))


def kernel_tanh(x: Tensor) -> Tensor:
    """Tanh as the update computes it: adv = 0, α = 1, wide bounds, the gradient as it is."""
    grad = x.view(1, 1, 1, -1)
    zero = torch.zeros_like(grad)
    adv, _ = ops.update(
        zero, zero, grad, None, eps=4.0, alpha=1.0, background=1.0, bounds=(-4.0, 4.0),
        normalize="none", backend="native",
    )  # fmt: skip
    return adv.flatten()


@pytest.mark.parametrize("isa", _native_cpu.isas())
def test_tanh_is_accurate_to_2_ulp(isa: str) -> None:
    best = _native_cpu.isa()
    _native_cpu.use_isa(isa)
    try:
        x = torch.cat(
            [
                torch.linspace(-12, 12, 2_000_001),
                torch.randn(500_000) * torch.logspace(-30, 2, 500_000),
                torch.tensor([0.0, 0.625, -0.625, 9.0, 10.0, 88.0, 1e10, 3e38]),
            ]
        )
        found, exact = kernel_tanh(x), x.double().tanh()
    finally:
        _native_cpu.use_isa(best)
    rounded = exact.float()
    ulp = torch.nextafter(rounded.abs(), torch.tensor(math.inf)) - rounded.abs()
    assert float(((found.double() - exact).abs() / ulp.double()).max()) <= 2


def test_extreme_gradients_and_settings(backend: str) -> None:
    """Neither huge nor tiny numbers turn into no step, a wrong step or NaN."""
    middle = torch.full((1, 3, 8, 8), 0.5)
    common = {"eps": 0.1, "alpha": 0.05, "background": 1.0, "backend": backend}
    for size in (1e37, 3e38, 1e-19, 2e-20):
        for normalize in ("mean_abs", "max_abs", "rms"):
            grad = torch.full_like(middle, size)
            adv, _ = ops.update(middle, middle, grad, None, normalize=normalize, **common)
            assert torch.allclose(adv, middle + 0.05 * math.tanh(1), atol=1e-6)
    # Below 1e-20 the divisor of equation 5 stays there, and the step shrinks.
    adv, _ = ops.update(middle, middle, torch.full_like(middle, 1e-21), None, **common)
    assert torch.allclose(adv, middle + 0.05 * math.tanh(0.1), atol=1e-6)
    grad = torch.ones_like(middle)
    grad[0, 0, 0, 0] = 0
    adv, _ = ops.update(middle, middle, grad, None, gain=1e39, **common)
    assert adv[0, 0, 0, 0] == 0.5
    assert torch.allclose(adv.flatten()[1:], torch.tensor(0.55))


def test_16_bit_results_overflow_and_keep_nan_as_in_torch() -> None:
    values = torch.tensor([65504.0, 65519.0, 65520.0, 1e30, math.inf, -70000.0, math.nan, 3.3e38])
    for dtype in HALVES:
        copy = ops.occlude(values.view(1, 1, 1, -1), 0, 1, patch=1, fill=7.0, dtype=dtype, backend="native").flatten()
        expected = values.clone()
        expected[0] = 7.0
        assert torch.equal(copy.float().nan_to_num(nan=-1), expected.to(dtype).float().nan_to_num(nan=-1))


def test_constants_have_the_precision_of_each_batch() -> None:
    classifier = Classifier(lambda x: x.flatten(1), mean=0.1, std=0.3)
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    for dtype in (torch.float32, torch.float64, torch.float32):
        given = images.to(dtype)
        assert torch.equal(classifier.inputs(given), (given - 0.1) / 0.3)
