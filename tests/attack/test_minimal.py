"""Least distortion: growth, refinement along the boundary, and results on a grid (METHOD.md, 3b)."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import Steady, convnet, linear_net, predicted
from torch import Tensor, nn

from sdsgsm_fast import (
    ABFGSM,
    BIM,
    DIFGSM,
    MIFGSM,
    NIFGSM,
    PGD,
    SDSGSM,
    Attack,
    AttackResult,
    MinimalSDSGSM,
    Occlusion,
    SmoothingOnly,
)
from sdsgsm_fast.common.numerics import allocation
from sdsgsm_fast.refine import GRID_PROBES, Grid

EPS = 16 / 255


@pytest.fixture
def net() -> nn.Module:
    return convnet()


@pytest.fixture
def images() -> Tensor:
    """As from 8-bit files."""
    return (torch.rand(16, 3, 16, 16) * 255).round() / 255


@pytest.fixture
def labels(net: nn.Module, images: Tensor) -> Tensor:
    classes = predicted(net, images)
    classes[[3, 7]] = (classes[[3, 7]] + 1) % 5
    return classes


def l2(result: AttackResult) -> Tensor:
    return (result.adv - result.images).flatten(1).norm(dim=1)


def judged(net: nn.Module, result: AttackResult, labels: Tensor, target: Tensor | None = None) -> None:
    """Success is what the model says of the images that are handed over."""
    found = predicted(net, result.adv)
    fooled = found != labels if target is None else found == target
    assert torch.equal(fooled & ~result.skipped, result.success)
    assert torch.equal(result.adv[result.skipped], result.images[result.skipped])


def test_growth_is_equation_14(net: nn.Module, images: Tensor) -> None:
    labels = predicted(net, images)
    common: dict[str, Any] = {"eps": EPS, "domain": None, "relax": None, "early_stop": False, "precision": "float32"}
    adv = images
    for t in range(5):
        x = adv.clone().requires_grad_()
        (g,) = torch.autograd.grad(F.cross_entropy(net(x), labels, reduction="sum"), x)
        g = g / g.abs().mean((1, 2, 3), keepdim=True)
        adv = (adv + 0.1 / 255 * 1.5**t * g.tanh()).clamp(images - EPS, images + EPS).clamp(0, 1)
    found = Attack(net, alpha=0.1 / 255, growth=1.5, gain=1.0, steps=5, **common)(images, labels)
    assert torch.allclose(found, adv, atol=2e-6)


def test_growth_without_end_does_not_overflow(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    result = BIM(net, eps=0.5 / 255, alpha=1e-3, growth=10.0, steps=400, early_stop=False).run(images, labels)
    assert result.adv.isfinite().all()
    assert (result.adv - images).abs().max() <= 0.5 / 255 + 1e-7


@pytest.mark.parametrize("refine", [1, 2, 3, 8, 9])
def test_refining_costs_its_passes_and_makes_no_image_worse(
    refine: int, net: nn.Module, images: Tensor, labels: Tensor
) -> None:
    common: dict[str, Any] = {"eps": EPS, "domain": None, "relax": None, "alpha": 1 / 255, "precision": "float32"}
    plain = SmoothingOnly(net, **{k: v for k, v in common.items() if k != "domain"}).run(images, labels)
    result = Attack(net, refine=refine, **common).run(images, labels)
    judged(net, result, labels)
    assert torch.equal(result.success, plain.success)
    assert torch.equal(result.updates, plain.updates)
    assert (l2(result) <= l2(plain) + 1e-6).all()
    extra = (result.passes.forward + result.passes.backward) - (plain.passes.forward + plain.passes.backward)
    assert set(extra[result.success].tolist()) == {refine}
    assert set(extra[~result.success].tolist()) <= {0}
    if refine >= 8:
        assert l2(result)[result.success].mean() < 0.8 * l2(plain)[plain.success].mean()


def test_of_a_linear_model_the_nearest_point_is_found() -> None:
    """The distance to the boundary is known; the overshoot of a hundredth is all that is added."""
    net = linear_net(3 * 8 * 8, classes=2)
    images = torch.rand(20, 3, 8, 8) * 0.2 + 0.4
    labels = predicted(net, images)
    layer = net[-1]
    difference = (layer.weight[1] - layer.weight[0]).detach()
    logits = net(images).detach()
    distance = (logits[:, 1] - logits[:, 0]).abs() / difference.norm()
    result = MinimalSDSGSM(net, eps=0.4).run(images, labels)
    assert result.success.all()
    assert (l2(result) >= distance).all()
    assert (l2(result) <= 1.011 * distance).all()


SETTINGS: dict[str, tuple[type[Attack], dict[str, Any]]] = {
    "minimal": (MinimalSDSGSM, {}),
    "domain": (SDSGSM, {"domain": Occlusion(patch=4), "background": 0.25}),
    "nothing outside the domain": (SDSGSM, {"background": 0.0, "relax": None, "eps": 0.3}),
    "momentum": (MIFGSM, {"steps": 8}),
    "all steps": (BIM, {"early_stop": False, "steps": 4}),
    "restarts": (PGD, {"restarts": 2, "steps": 5, "eps": 3 / 255, "seed": 0}),
    "look ahead": (NIFGSM, {"steps": 8}),
    "diversity": (DIFGSM, {"steps": 8, "seed": 0}),
    "adabelief": (ABFGSM, {"steps": 8}),
    "odd": (BIM, {"refine": 5}),
    "float32": (MinimalSDSGSM, {"precision": "float32"}),
    "bfloat16": (MinimalSDSGSM, {"precision": "bfloat16"}),
    "reference": (MinimalSDSGSM, {"backend": "reference"}),
    "every size of image its own eps": (MinimalSDSGSM, {"eps": torch.linspace(2, 40, 16) / 255}),
}


@pytest.mark.parametrize("levels", [None, 256])
@pytest.mark.parametrize("name", SETTINGS)
def test_every_attack_refines(name: str, levels: int | None, net: nn.Module, images: Tensor, labels: Tensor) -> None:
    kind, settings = SETTINGS[name]
    settings = {"eps": EPS, "refine": 8, **settings}
    plain = kind(net, **{**settings, "refine": 0}).run(images, labels)
    result = kind(net, levels=levels, **settings).run(images, labels)
    judged(net, result, labels)
    assert torch.equal(result.skipped, plain.skipped)
    assert result.success.sum() >= 0.9 * plain.success.sum()
    background, eps = torch.tensor(settings.get("background", 0.5)), torch.as_tensor(settings["eps"])
    beta = background if settings.get("relax", 0.6) is None else torch.ones(())
    limit = eps.view(-1, 1, 1, 1) * allocation(beta.expand(16), result.domain)
    assert ((result.adv - images).abs() <= limit + 1e-6).all()
    both = result.success & plain.success
    if levels is None:
        assert l2(result)[both].mean() < l2(plain)[both].mean()
    else:
        places = result.adv.double() * 255
        assert (places - places.round()).abs().max() < 1e-5
        assert torch.equal(result.adv, ((places.round() / 255).float()))
        assert result.metrics().success_rate == result.metrics().success_rate_8bit


@pytest.mark.parametrize("levels", [None, 256])
def test_targets_are_reached_with_less(levels: int | None, net: nn.Module, images: Tensor, labels: Tensor) -> None:
    target = (predicted(net, images) + 1) % 5
    labels = predicted(net, images)
    settings: dict[str, Any] = {"eps": 0.2, "steps": 40}
    plain = SmoothingOnly(net, gain=0.25, growth=1.3, alpha=0.2 / 32, **settings).run(images, labels, target=target)
    result = MinimalSDSGSM(net, levels=levels, **settings).run(images, labels, target=target)
    judged(net, result, labels, target)
    assert torch.equal(result.success, plain.success)
    assert result.success.sum() >= 12
    assert l2(result)[result.success].mean() < 0.9 * l2(plain)[plain.success].mean()


def test_bounds_are_kept(net: nn.Module, images: Tensor) -> None:
    """In other bounds the same attack, scaled; images at their very ends stay inside."""
    images[:, :, :8] = images[:, :, :8].round()
    labels = predicted(net, images)
    scaled = images * 510 - 255
    wide = nn.Sequential(Halved(), net)
    for levels in (None, 256, 16):
        result = MinimalSDSGSM(net, eps=0.3, levels=levels).run(images, labels)
        other = MinimalSDSGSM(wide, eps=0.3 * 510, levels=levels, bounds=(-255, 255)).run(scaled, labels)
        judged(net, result, labels)
        judged(wide, other, labels)
        assert other.success.float().mean() >= 0.9
        assert other.adv.min() >= -255
        assert other.adv.max() <= 255
        assert result.adv.min() >= 0
        assert result.adv.max() <= 1
        if levels:
            place = (other.adv[other.success].double() + 255) / 510 * (levels - 1)
            assert (place - place.round()).abs().max() < 1e-4
        else:
            assert l2(other).mean() / 510 == pytest.approx(float(l2(result).mean()), rel=0.02)


class Halved(nn.Module):
    """From [−255, 255] to [0, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        return (x + 255) / 510


def test_images_between_levels_are_taken_to_the_grid(net: nn.Module) -> None:
    images = torch.rand(12, 3, 16, 16)
    labels = predicted(net, images)
    result = MinimalSDSGSM(net, eps=EPS, levels=256).run(images, labels)
    judged(net, result, labels)
    assert result.success.all()
    places = result.adv.double() * 255
    assert (places - places.round()).abs().max() < 1e-5
    assert (result.adv - images).abs().max() <= EPS + 1e-6
    stuck = BIM(net, eps=0.1 / 255, steps=2, levels=256).run(images, labels)
    assert not stuck.success.all()
    assert (stuck.adv - images).abs().max() <= 0.5 / 255 + 1e-6, "the nearest value is as far as need be"
    places = stuck.adv.double() * 255
    assert (places - places.round()).abs().max() < 1e-5


def test_a_sixteenth_of_the_levels_still_fools(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    result = MinimalSDSGSM(net, eps=0.3, levels=16).run(images, labels)
    judged(net, result, labels)
    assert result.success[~result.skipped].float().mean() >= 0.9
    places = result.adv[result.success].double() * 15
    assert (places - places.round()).abs().max() < 1e-5


def test_the_grid_takes_the_least_change_with_an_effect() -> None:
    """Against a search by hand over all thresholds of equation 16."""
    images = (torch.rand(4, 1, 6, 6) * 255).round() / 255
    delta = torch.randn(4, 1, 6, 6) * 1.5 / 255
    low, high = (images - 0.1).clamp(min=0), (images + 0.1).clamp(max=1)
    grid = Grid(images, delta, low, high, 256, (0.0, 1.0))
    for effect in (0.5, 1.0, 1.3, 2.0, 5.0):
        found = (grid.with_effect(torch.full((4,), effect)) - images).double()
        for i in range(4):
            d = delta[i].double()
            wanted = effect * float(d.square().sum())
            assert float((found[i] * d).sum()) >= wanted * (1 - 1e-6)
            for addend in torch.linspace(0, 20, 40001, dtype=torch.float64):
                q = d.sign() * ((d.abs() * 255) + addend).floor() / 255
                q = (images[i] + q).clamp(low[i].double(), high[i].double()) - images[i]
                if float((q * d).sum()) >= wanted:
                    break
            more = (q - found[i]).abs() > 1e-5
            assert int(more.sum()) <= 1, "but for pixels that take the step at the same threshold"
            assert float(found[i].norm()) <= float(q.norm()) + 1e-6


def test_a_stream_refines_as_run_does(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    for levels in (None, 256):
        attack = MinimalSDSGSM(net, eps=EPS, levels=levels, batch_size=5, precision="float32")
        whole = attack.run(images, labels)
        batches = zip(images.split([4, 9, 3]), labels.split([4, 9, 3]), strict=True)
        parts = sorted(attack.stream(batches), key=lambda r: int(r.index[0]))
        assert torch.equal(torch.cat([r.success for r in parts]), whole.success)
        assert torch.allclose(torch.cat([r.adv for r in parts]), whole.adv, atol=1e-4 if levels is None else 2.1 / 255)
        for part in parts:
            judged(net, part, labels[part.index])


def test_slots_change_no_bit_of_a_steady_model(images: Tensor) -> None:
    net = Steady().eval()
    labels = predicted(net, images)
    for levels in (None, 256):
        settings: dict[str, Any] = {"eps": EPS, "levels": levels}
        whole = MinimalSDSGSM(net, **settings).run(images, labels)
        few = MinimalSDSGSM(net, batch_size=3, **settings).run(images, labels)
        assert torch.equal(whole.adv, few.adv)
        assert torch.equal(whole.passes.forward, few.passes.forward)
        assert whole.success.any()


def test_memory_is_halved_while_refining(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    class Tight(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) > 3:
                raise torch.OutOfMemoryError("too many")
            return net(x)

    for levels in (None, 256):
        found = MinimalSDSGSM(Tight(), eps=EPS, levels=levels).run(images, labels)
        expected = MinimalSDSGSM(net, eps=EPS, levels=levels, precision="float32").run(images, labels)
        judged(net, found, labels)
        assert torch.equal(found.success, expected.success)
        assert torch.equal(found.passes.backward, expected.passes.backward)


def test_minimal_is_smaller_than_the_default(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    default = SDSGSM(net, eps=EPS).run(images, labels)
    minimal = MinimalSDSGSM(net, eps=EPS).run(images, labels)
    grid = MinimalSDSGSM(net, eps=EPS, levels=256).run(images, labels)
    both = default.success & minimal.success & grid.success
    assert both.sum() >= 12
    assert l2(minimal)[both].mean() < 0.8 * l2(default)[both].mean()
    assert l2(minimal)[both].mean() <= l2(grid)[both].mean()
    passes = grid.passes.forward + grid.passes.backward - minimal.passes.forward - minimal.passes.backward
    assert passes.max() <= GRID_PROBES


def test_nothing_to_do(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    attack = MinimalSDSGSM(net, levels=256)
    assert attack.run(images[:0], labels[:0]).adv.shape == (0, 3, 16, 16)
    still = MinimalSDSGSM(net, eps=0.0, levels=256).run(images, labels)
    assert torch.equal(still.adv, images)
    assert not still.success.any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"growth": 0.5}, "growth: expected a finite number of at least 1"),
        ({"growth": math.inf}, "growth: expected a finite number of at least 1"),
        ({"refine": -1}, "refine: expected an integer of at least 0"),
        ({"refine": 1.5}, "refine: expected an integer of at least 0"),
        ({"levels": 1}, "levels: expected an integer of at least 2"),
        ({"levels": 2**17}, "levels: expected at most 65536"),
        ({"refine": 2, "cuda_graphs": True}, "cuda_graphs: not with refine"),
    ],
)
def test_bad_settings_of_refinement(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Attack(convnet(), **settings)


def test_levels_need_32_bits(net: nn.Module) -> None:
    with pytest.raises(TypeError, match="levels: expected images of 32 or 64 bits"):
        BIM(net, levels=256)(torch.rand(1, 3, 16, 16).half(), torch.tensor([0]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_refinement_needs_32_bits(dtype: torch.dtype, net: nn.Module) -> None:
    with pytest.raises(TypeError, match="refine: expected images of 32 or 64 bits"):
        MinimalSDSGSM(net)(torch.rand(1, 3, 16, 16).to(dtype), torch.tensor([0]))


def test_a_gradient_that_nobody_needs_may_be_anything() -> None:
    """The root's slope at black is infinite: an image that looks at the grid there has no use for it."""

    def model(x: Tensor) -> Tensor:
        return torch.cat((10 * x.sqrt().sum((2, 3)), torch.full((len(x), 1), 1.0)), 1)

    images = torch.tensor([2 / 255, 200 / 255]).view(2, 1, 1, 1)
    settings: dict[str, Any] = {"levels": 256, "eps": 2 / 255, "alpha": 0.33 / 255, "precision": "float32"}
    labels = torch.zeros(2, dtype=torch.int64)
    alone = [BIM(model, **settings).run(images[i : i + 1], labels[:1]) for i in range(2)]
    both = BIM(model, **settings).run(images, labels)
    assert torch.equal(both.success, torch.cat([r.success for r in alone]))
    assert torch.equal(both.adv, torch.cat([r.adv for r in alone]))


class Brightness(nn.Module):
    """Class 1 where the image is brighter than a value."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, x: Tensor) -> Tensor:
        z = 100 * (x.mean((1, 2, 3)) - self.limit)
        return torch.stack((-z, z), 1)


@pytest.mark.parametrize(("levels", "eps"), [(2, 0.9995), (4, 0.333), (256, 7.9995 / 255), (1024, 3.001 / 1023)])
def test_the_grid_stays_within_eps(levels: int, eps: float) -> None:
    images = torch.full((1, 1, 4, 4), round(0.4 * (levels - 1)) / (levels - 1))
    result = BIM(Brightness(float(images.mean()) + eps / 4), eps=eps, levels=levels, early_stop=False).run(
        images, torch.tensor([0])
    )
    assert (result.adv - images).abs().max() <= eps + 2e-7


def test_no_point_of_the_grid_is_looked_at_twice() -> None:
    """Where ε is no multiple of a level, what is in reach may all fail."""
    images = torch.full((1, 1, 2, 2), 100 / 255)
    model = Brightness(102.5 / 255)
    plain = BIM(model, eps=2.9 / 255, alpha=1.45 / 255).run(images, torch.tensor([0]))
    result = BIM(model, eps=2.9 / 255, alpha=1.45 / 255, levels=256).run(images, torch.tensor([0]))
    assert plain.success.all()
    assert not result.success.any()
    assert int(result.passes.forward - plain.passes.forward) <= 3


@pytest.mark.parametrize("levels", [2, 3, 5])
def test_success_is_that_of_the_result_also_where_the_attack_failed(levels: int) -> None:
    torch.manual_seed(1)
    net = convnet()
    images = (torch.rand(60, 3, 16, 16) * (levels - 1)).round() / (levels - 1)
    labels = predicted(net, images)
    for steps in (1, 3):
        result = BIM(net, eps=0.6, alpha=0.3, steps=steps, levels=levels).run(images, labels)
        judged(net, result, labels)


def test_an_iterate_on_the_grid_is_no_worse_for_it(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    settings: dict[str, Any] = {"eps": EPS, "alpha": 1 / 255}
    plain = BIM(net, **settings).run(images, labels)
    result = BIM(net, levels=256, **settings).run(images, labels)
    assert torch.equal(result.success, plain.success)
    assert (l2(result) <= l2(plain) + 1e-6).all()


def test_updates_of_earlier_restarts_are_those_made() -> None:
    """An attempt that fools early and then fails on the grid has not made all its updates."""
    images = torch.full((1, 1, 2, 2), 100 / 255)
    model = Brightness(102.5 / 255)
    settings: dict[str, Any] = {"eps": 2.9 / 255, "alpha": 2.9 / 255, "steps": 50, "levels": 256, "seed": 0}
    one = PGD(model, **settings).run(images, torch.tensor([0]))
    two = PGD(model, restarts=3, **settings).run(images, torch.tensor([0]))
    assert not two.success.any()
    assert one.updates < 50
    assert one.updates <= two.updates <= 3 * 3
