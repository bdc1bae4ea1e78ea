"""Where gradients are taken, and of what: METHOD.md, equations 8 to 13, and the presets made of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchattacks
from nets import convnet, gradient, predicted
from torch import Tensor, nn

from sdsgsm_fast import (
    ABFGSM,
    BIM,
    DIFGSM,
    FGSM,
    MIFGSM,
    NIFGSM,
    PGD,
    SDSGSM,
    SINIFGSM,
    TIFGSM,
    Attack,
    Gradient,
    Jitter,
    MinimalSDSGSM,
    SmoothingOnly,
    SpatialOnly,
    losses,
)
from sdsgsm_fast.gradients import AdaBelief, Diversity, Extra, Kernel, LookAhead, Scales, ordered

EPS, ALPHA, STEPS = 8 / 255, 1 / 255, 6
EXTRAS = (LookAhead(), Scales(3), Diversity(p=0.7, rate=0.8), Kernel(5, 2.0))
PRESETS = (
    ABFGSM, BIM, DIFGSM, FGSM, Jitter, MIFGSM, MinimalSDSGSM, NIFGSM, PGD, SDSGSM, SINIFGSM, SmoothingOnly,
    SpatialOnly, TIFGSM,
)  # fmt: skip


@pytest.fixture
def net() -> nn.Module:
    return convnet()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(12, 3, 16, 16)


@pytest.fixture
def labels(net: nn.Module, images: Tensor) -> Tensor:
    return predicted(net, images)


def step(adv: Tensor, images: Tensor, direction: Tensor) -> Tensor:
    return (adv + ALPHA * direction).clamp(images - EPS, images + EPS).clamp(0, 1)


RIVALS: dict[str, tuple[type[Attack], dict[str, Any], dict[str, Any]]] = {
    "FGSM": (FGSM, {}, {}),
    "BIM": (BIM, {"steps": STEPS, "alpha": ALPHA}, {}),
    "PGD": (PGD, {"steps": STEPS, "alpha": ALPHA}, {"random_start": False}),
    "MIFGSM": (MIFGSM, {"steps": STEPS, "alpha": ALPHA}, {}),
    "NIFGSM": (NIFGSM, {"steps": STEPS, "alpha": ALPHA}, {}),
    "SINIFGSM": (SINIFGSM, {"steps": STEPS, "alpha": ALPHA}, {}),
    "TIFGSM": (TIFGSM, {"steps": STEPS, "alpha": ALPHA}, {"diversity_prob": 0.0}),
}


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("name", RIVALS)
def test_images_are_torchattacks(name: str, targeted: bool, net: nn.Module, images: Tensor, labels: Tensor) -> None:
    kind, settings, theirs = RIVALS[name]
    start = {"random_start": False} if kind is PGD else {}
    rival = getattr(torchattacks, name)(net, eps=EPS, **settings, **theirs)
    target = (labels + 1) % 5 if targeted else None
    if target is not None:
        rival.set_mode_targeted_by_label(quiet=True)
    expected = rival(images, labels if target is None else target)
    for precision in ("float32", "auto"):
        attack = kind(net, eps=EPS, early_stop=False, precision=precision, **settings, **start)
        off = (attack(images, labels, target=target) - expected).abs() > 1e-5
        assert off.double().mean() <= 2e-4, precision


def test_jitter_without_noise_is_torchattacks(
    net: nn.Module, images: Tensor, labels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until an image is fooled. Then the slope of its distance lies at those pixels that are furthest by rounding."""
    monkeypatch.setattr(losses, "JITTER_NOISE", 0.0)
    settings: dict[str, Any] = {"eps": 2 / 255, "alpha": 0.2 / 255, "steps": 5, "random_start": False}
    expected = torchattacks.Jitter(net, std=0, **settings)(images, labels)
    result = Jitter(net, early_stop=False, precision="float32", **settings).run(images, labels)
    assert 4 <= result.success.sum() <= 8
    same = ~result.success
    assert ((result.adv - expected)[same].abs() > 1e-5).double().mean() <= 2e-4


def test_jitter_is_torchattacks_in_distribution(net: nn.Module) -> None:
    """Fooled images included: their step is over the distance, which goes into the gradient."""
    images = torch.rand(300, 3, 16, 16)
    labels = predicted(net, images)
    settings: dict[str, Any] = {"eps": 2 / 255, "alpha": 0.25 / 255, "steps": 10}
    both = [
        torchattacks.Jitter(net, **settings)(images, labels),
        Jitter(net, early_stop=False, seed=0, **settings)(images, labels),
    ]
    rates = [float((predicted(net, adv) != labels).float().mean()) for adv in both]
    assert 0.3 < rates[0] < 0.9
    assert abs(rates[0] - rates[1]) < 0.08  # two standard deviations of 300 images
    moved = [float((adv - images).abs().mean()) for adv in both]
    assert 0.96 < moved[0] / moved[1] < 1.04
    at_limit = [float(((adv - images).abs() > 0.999 * 2 / 255).float().mean()) for adv in both]
    assert abs(at_limit[0] - at_limit[1]) < 0.03


def test_jitters_noise_is_normal_and_the_images_own(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    seen: list[Tensor] = []
    original = losses._jitter

    def watch(z: Tensor, y: Tensor, target: Any, jitter: losses.Jitter, leaf: Any) -> Tensor:
        seen.append(jitter.normal(4000))
        return original(z, y, target, jitter, leaf)

    losses._jitter = watch
    try:
        Jitter(net, steps=2, early_stop=False, seed=1, precision="float32").run(images, labels)
    finally:
        losses._jitter = original
    first, second = seen[:2]
    assert abs(float(first.mean())) < 0.02
    assert abs(float(first.std()) - 1) < 0.02
    assert float(torch.corrcoef(torch.stack([first[0], first[1], second[0]])).triu(1).abs().max()) < 0.06


def test_jitter_descends_to_a_target(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    target = (labels + 1) % 5
    result = Jitter(net, eps=0.3, alpha=0.02, steps=40, seed=0).run(images, labels, target=target)
    assert result.success.sum() >= 8
    assert torch.equal(predicted(net, result.adv) == target, result.success)


def test_jitters_loss_is_equation_12() -> None:
    z, y, x = torch.randn(6, 4).double(), torch.tensor([0, 1, 2, 3, 0, 1]), torch.rand(6, 1, 2, 2).double()
    noise, away = torch.randn(6, 4).double(), torch.tensor([0.0, 0.5, 0.5, 0.5, 0.25, 0.0]).double()
    found = losses.loss("jitter", z, y, None, losses.Jitter(lambda _: noise, lambda _: away), x)
    for i in range(6):
        p = (10 * z[i] / z[i].abs().max()).softmax(0) + 0.1 * noise[i]
        expected = (p - F.one_hot(y[i], 4)).square().sum() / 4
        if z[i].argmax() != y[i] and away[i] > 0:
            expected = expected / away[i]
        assert torch.isclose(found[i], expected)


def test_adabelief_is_equation_13(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    for gain in (math.inf, 0.7):
        adv, m, s = images.clone(), torch.zeros_like(images), torch.zeros_like(images)
        for t in range(1, STEPS + 1):
            g = gradient(net, adv, labels)
            g = g / g.abs().mean((1, 2, 3), keepdim=True)
            m = 0.8 * m + 0.2 * g
            s = 0.99 * s + 0.01 * (g - m) ** 2 + 1e-6
            v = (m / (1 - 0.8**t)) / ((s / (1 - 0.99**t)).sqrt() + 1e-6)
            adv = step(adv, images, v.sign() if math.isinf(gain) else (gain * v).tanh())
        attack = ABFGSM(net, eps=EPS, alpha=ALPHA, steps=STEPS, gain=gain, moments=AdaBelief(0.8, 0.99, 1e-6),
                        early_stop=False, precision="float32")  # fmt: skip
        assert (((attack(images, labels) - adv).abs() > 1e-5).double().mean()) <= 2e-4


def test_adabelief_looks_ahead_by_its_own_direction(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    adv, m, s, v = images.clone(), torch.zeros_like(images), torch.zeros_like(images), torch.zeros_like(images)
    for t in range(1, 4):
        g = gradient(net, adv + ALPHA * 0.5 * v, labels)
        g = g / g.abs().mean((1, 2, 3), keepdim=True)
        m = 0.9 * m + 0.1 * g
        s = 0.999 * s + 0.001 * (g - m) ** 2 + 1e-8
        v = (m / (1 - 0.9**t)) / ((s / (1 - 0.999**t)).sqrt() + 1e-8)
        adv = step(adv, images, v.sign())
    attack = ABFGSM(net, eps=EPS, alpha=ALPHA, steps=3, decay=0.5, gradient=[LookAhead()], early_stop=False)
    assert (((attack(images, labels) - adv).abs() > 1e-5).double().mean()) <= 2e-4


def test_diversity_is_resize_and_padding(net: nn.Module) -> None:
    image = torch.rand(1, 3, 20, 30, requires_grad=True)
    d = Diversity(p=0.5, rate=0.75)
    assert d.transformed(image, [0.5, 0.0, 0.0, 0.0]) is image
    small = d.transformed(image.detach(), [0.1, 0.0, 0.0, 0.999])
    assert small.shape == image.shape
    expected = F.interpolate(image.detach(), (15, 22), mode="bilinear", align_corners=False)  # 15·30/20 = 22.5, to even
    assert torch.equal(small[:, :, :15, 8:], expected)
    assert float(small[:, :, 15:].abs().sum() + small[:, :, :, :8].abs().sum()) == 0
    sides = {int((d.transformed(torch.ones(1, 1, 20, 20), [0.0, u, 0.5, 0.5])[0, 0].amax(1) > 0).sum())
             for u in np.linspace(0, 0.9999, 50)}  # fmt: skip
    assert sides == {15, 16, 17, 18, 19}
    corners = {tuple(d.transformed(torch.ones(1, 1, 20, 20), [0.0, 0.0, u, v])[0, 0].nonzero()[0].tolist())
               for u in np.linspace(0, 0.9999, 30) for v in (0.0, 0.9999)}  # fmt: skip
    assert corners == {(top, left) for top in range(6) for left in (0, 5)}


def test_diversitys_gradient_is_the_chain_rules(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    """The first update against autograd through the same transformation."""
    d = Diversity(p=1.0, rate=0.7)
    draws: list[list[float]] = []
    original = Diversity.transformed

    def watch(self: Diversity, image: Tensor, draw: list[float]) -> Tensor:
        draws.append(draw)
        return original(self, image, draw)

    Diversity.transformed = watch  # type: ignore[method-assign]
    try:
        attack = DIFGSM(net, eps=EPS, alpha=ALPHA, steps=1, gain=0.5, gradient=[d], seed=4, early_stop=False,
                        precision="float32")  # fmt: skip
        found = attack(images, labels)
    finally:
        Diversity.transformed = original  # type: ignore[method-assign]
    x = images.clone().requires_grad_()
    moved = torch.cat([d.transformed(x[i : i + 1], draw) for i, draw in enumerate(draws[:12])])
    (g,) = torch.autograd.grad(F.cross_entropy(net(moved), labels, reduction="sum"), x)
    g = g / g.abs().mean((1, 2, 3), keepdim=True)
    assert torch.allclose(found, step(images, images, (0.5 * g).tanh()), atol=1e-6)
    assert len({tuple(draw) for draw in draws[:12]}) == 12, "each image has its own"


def test_di_fgsm_fools_as_often_as_torchattacks(net: nn.Module) -> None:
    images = torch.rand(300, 3, 16, 16)
    labels = predicted(net, images)
    settings: dict[str, Any] = {"eps": 3 / 255, "alpha": 0.5 / 255, "steps": 8}
    theirs = torchattacks.DIFGSM(net, resize_rate=0.75, diversity_prob=0.8, **settings)
    expected = torch.cat([theirs(x, y) for x, y in zip(images.split(30), labels.split(30), strict=True)])
    ours = DIFGSM(net, gradient=[Diversity(0.8, 0.75)], early_stop=False, seed=0, **settings)(images, labels)
    rates = [float((predicted(net, adv) != labels).float().mean()) for adv in (expected, ours)]
    assert 0.1 < rates[0] < 0.9
    assert abs(rates[0] - rates[1]) < 0.08  # two standard deviations of 300 images
    plain = BIM(net, early_stop=False, **settings)(images, labels)
    far = [float((adv - plain).abs().mean()) for adv in (expected, ours)]
    assert 0.75 < far[0] / far[1] < 1.33


def test_kernel_is_an_outer_product_that_sums_to_one() -> None:
    spike = torch.zeros(1, 2, 31, 31)
    spike[0, 1, 15, 15] = 1
    found = Kernel(15, 3.0).gradient(lambda x: x, spike, None)  # type: ignore[arg-type]
    assert float(found[0, 0].abs().max()) == 0
    density = torch.exp(-(torch.linspace(-3, 3, 15) ** 2) / 2)
    density = density / density.sum()
    assert torch.allclose(found[0, 1, 8:23, 8:23], torch.outer(density, density), atol=1e-7)
    assert float(found.sum()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda p: p.__name__)
def test_every_preset_takes_every_extra_and_domain(
    preset: type[Attack], net: nn.Module, images: Tensor, labels: Tensor
) -> None:
    steps: dict[str, Any] = {} if preset is FGSM else {"steps": 4}
    domains = (None, Gradient(coverage=0.5), torch.ones(12, 16, 16))
    for extras, domain in [*(((e,), None) for e in EXTRAS), *((EXTRAS, d) for d in domains)]:
        result = preset(net, eps=EPS, gradient=extras, domain=domain, relax=None, seed=0, **steps).run(images, labels)
        assert float((result.adv - images).abs().max()) <= EPS + 1e-6
        assert torch.equal(predicted(net, result.adv) != labels, result.success)
        assert result.updates.max() >= 1
        assert not torch.equal(result.adv, images)


def test_extras_compose_in_one_order(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    """By hand: look ahead, scales, smoothing; whatever order they are given in."""
    adv, v = images.clone(), torch.zeros_like(images)
    for _ in range(STEPS):
        ahead = adv + ALPHA * v
        g = sum(gradient(net, ahead / 2**i, labels) / 2**i for i in range(3)) / 3
        g = EXTRAS[3].gradient(lambda _, g=g: g, ahead, None)
        v = v + g / g.abs().mean((1, 2, 3), keepdim=True)
        adv = step(adv, images, v.sign())
    for extras in ((LookAhead(), Scales(3), EXTRAS[3]), (EXTRAS[3], Scales(3), LookAhead())):
        attack = MIFGSM(net, eps=EPS, alpha=ALPHA, steps=STEPS, gradient=extras, early_stop=False)
        assert ((attack(images, labels) - adv).abs() > 1e-5).double().mean() <= 2e-4


@pytest.mark.parametrize("preset", [DIFGSM, SINIFGSM, TIFGSM, Jitter, ABFGSM, NIFGSM], ids=lambda p: p.__name__)
def test_an_images_result_is_its_own(preset: type[Attack], net: nn.Module, images: Tensor, labels: Tensor) -> None:
    settings: dict[str, Any] = {"eps": 3 / 255, "steps": 6, "seed": 3}
    whole = preset(net, **settings).run(images, labels)
    order = torch.randperm(12)
    mixed = preset(net, batch_size=5, **settings).run(images[order], labels[order], index=order)
    # Rounding of other batch sizes may turn the sign of a gradient that is next to nothing.
    assert ((mixed.adv - whole.adv[order]).abs() > 1e-6).double().mean() < 1e-3
    batches = zip(images.split(5), labels.split(5), strict=True)
    streamed = sorted(preset(net, batch_size=4, **settings).stream(batches), key=lambda r: int(r.index[0]))
    together = torch.cat([r.adv for r in streamed])
    assert ((together - whole.adv).abs() > 1e-6).double().mean() < 1e-3


def test_passes_of_gradients_elsewhere_are_counted(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    common: dict[str, Any] = {"eps": EPS, "steps": 4, "early_stop": False, "precision": "float32"}
    for extras, each in (((LookAhead(),), 1), ((Scales(3),), 3), (EXTRAS[:2], 3), (EXTRAS[3:], None)):
        result = MIFGSM(net, gradient=extras, **common).run(images, labels)
        if each is None:  # the clean pass gives the first gradient, each other pass a verdict too
            forward, backward = 1 + 4, 4
        else:  # the clean pass, the last verdict, and the gradients
            forward, backward = 1 + 1 + 4 * each, 4 * each
        assert set(result.passes.forward.tolist()) == {forward}
        assert set(result.passes.backward.tolist()) == {backward}


def test_verdicts_are_on_the_iterate_itself(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    result = NIFGSM(net, eps=EPS, alpha=ALPHA, steps=20).run(images, labels)
    assert torch.equal(predicted(net, result.adv) != labels, result.success)
    assert len(set(result.updates.tolist())) > 1
    late = NIFGSM(net, eps=EPS, alpha=ALPHA, steps=20, early_stop=False).run(images, labels)
    assert late.success.sum() >= result.success.sum()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Scales(0), "count: expected an integer of at least 1, found 0"),
        (lambda: Scales(65), "count: expected at most 64 copies, found 65"),
        (lambda: Diversity(p=1.5), "p: expected a number in"),
        (lambda: Diversity(rate=1.0), "rate: expected a number in"),
        (lambda: Kernel(4), "size: expected an odd integer, found 4"),
        (lambda: Kernel(3, 0.0), "reach: expected a number above 0"),
        (lambda: AdaBelief(beta1=1.0), "beta1: expected a number in"),
        (lambda: AdaBelief(delta=0.0), "delta: expected a finite number above 0"),
        (lambda: ordered([Scales(2), Scales(3)]), "gradient: expected one of each kind, found Scales twice"),
        (lambda: ordered("NI"), "gradient: expected a list of LookAhead"),
        (lambda: BIM(convnet(), moments="adam"), "moments: expected AdaBelief"),
        (lambda: BIM(convnet(), gradient=[Diversity(rate=0.01)])(torch.rand(1, 3, 16, 16), torch.tensor([0])),
         "gradient: Diversity cannot make images of 16×16 smaller"),
        (lambda: BIM(convnet(), cuda_graphs=True, loss="jitter"), "cuda_graphs: not with refine, levels or"),
    ],
)  # fmt: skip
def test_bad_settings_of_extras(make: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_an_extra_of_ones_own(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    class Flipped(Extra):
        """Mean with the mirrored image."""

        def gradient(self, take: Any, x: Tensor, at: Any) -> Tensor:
            return (take(x) + take(x.flip(3)).flip(3)) / 2

    result = BIM(net, eps=EPS, alpha=ALPHA, gradient=Flipped(), steps=5).run(images, labels)
    assert torch.equal(predicted(net, result.adv) != labels, result.success)
    assert result.success.any()
