"""The loop: its invariants, its settings, and the known attacks as settings of it."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from nets import Looking, convnet, gradient, linear_net, predicted
from torch import Tensor, nn

from sdsgsm_fast import (
    BIM,
    FGSM,
    MIFGSM,
    PGD,
    SDSGSM,
    Attack,
    Gradient,
    Occlusion,
    SmoothingOnly,
    SpatialOnly,
    occlusion_scores,
)
from sdsgsm_fast.losses import loss

EPS = 8 / 255


@pytest.fixture
def net() -> nn.Module:
    return convnet()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(12, 3, 16, 16)


@pytest.fixture
def labels(net: nn.Module, images: Tensor) -> Tensor:
    """Mostly the predicted classes; two are wrong, so that those images are skipped."""
    classes = predicted(net, images)
    classes[[3, 7]] = (classes[[3, 7]] + 1) % 5
    return classes


def by_hand(net: nn.Module, x: Tensor, y: Tensor, *, steps: int, alpha: float, decay: float = 0.0) -> Tensor:
    """FGSM, BIM and MI-FGSM as their papers write them."""
    adv, momentum = x.clone(), torch.zeros_like(x)
    for _ in range(steps):
        g = gradient(net, adv, y)
        momentum = decay * momentum + g / g.abs().mean((1, 2, 3), keepdim=True)
        adv = adv + alpha * momentum.sign()
        adv = torch.min(torch.max(adv, x - EPS), x + EPS).clamp(0, 1)
    adv[predicted(net, x) != y] = x[predicted(net, x) != y]
    return adv


@pytest.mark.parametrize(
    ("attack", "settings"),
    [
        (FGSM, {"steps": 1, "alpha": EPS}),
        (BIM, {"steps": 20, "alpha": EPS / 8}),
        (MIFGSM, {"steps": 20, "alpha": EPS / 8, "decay": 1.0}),
    ],
)
def test_presets_are_the_published_attacks(
    attack: type[Attack],
    settings: dict[str, float],
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    backend: str,
) -> None:
    strict = attack(net, eps=EPS, early_stop=False, precision="float32", backend=backend)
    found = strict(images, labels)
    assert torch.allclose(found, by_hand(net, images, labels, **settings), atol=2e-6)


def test_pgd_starts_at_random_inside_the_ball(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    attack = PGD(net, eps=EPS, alpha=0.0, steps=1, seed=5, early_stop=False)
    start = attack(images, labels)
    distance = (start - images).abs().flatten(1).amax(1)
    tried = predicted(net, images) == labels
    assert torch.all(distance[tried] <= EPS + 1e-7)
    assert torch.all(distance[tried] > 0.9 * EPS)
    assert torch.equal(start[~tried], images[~tried])
    assert abs(float((start - images)[tried].mean())) < 0.1 * EPS


def test_random_starts_belong_to_the_image_not_to_the_batch(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    attack = PGD(net, eps=EPS, steps=3, seed=1)
    whole = attack.run(images, labels).adv
    part = attack.run(images[4:9], labels[4:9], index=torch.arange(4, 9)).adv
    assert torch.allclose(part, whole[4:9], atol=1e-6)
    other = PGD(net, eps=EPS, steps=3, seed=2)(images, labels)
    assert not torch.allclose(other, whole, atol=1e-3)
    first, second = (PGD(net, eps=EPS, steps=1, alpha=0.0)(images, labels) for _ in range(2))
    assert not torch.equal(first, second), "without a seed every run differs"


@pytest.mark.parametrize(
    ("settings", "rule"),
    [({}, "top"), ({"relax": None}, "soft"), ({"decay": 0.9}, "threshold"),
     ({"gain": math.inf}, "flip"), ({"relax": None, "decay": 0.9}, "top")],
)  # fmt: skip
def test_no_pixel_exceeds_its_budget(
    settings: dict[str, float],
    rule: str,
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    backend: str,
) -> None:
    background, steps = 0.25, 8
    if backend == "triton":  # its interpreter is slow
        images, labels = images[:2], labels[:2]
    attack = SDSGSM(
        net, eps=EPS, steps=steps, domain=Occlusion(patch=4, rule=rule), background=background,
        backend=backend, **settings,
    )  # fmt: skip
    result = attack.run(images, labels)
    last = (result.updates.clamp(min=1) - 1).double()
    grown = torch.zeros_like(last) if attack.relax is None else last / (0.6 * steps)
    beta = background + (1 - background) * grown.clamp(max=1)
    weight = beta[:, None, None] + (1 - beta[:, None, None]) * result.domain
    excess = (result.adv - images).abs() - EPS * weight[:, None]
    assert float(excess.max()) <= 1e-6
    assert result.adv.min() >= 0
    assert result.adv.max() <= 1
    assert bool((result.adv != images).any())


def test_success_is_what_the_model_says(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    for attack in (SDSGSM(net), BIM(net, early_stop=False), SDSGSM(net, eps=0.5, loss="margin")):
        result = attack.run(images, labels)
        wrong = predicted(net, result.adv) != labels
        assert torch.equal(result.predicted, predicted(net, images))
        assert torch.equal(result.skipped, result.predicted != labels)
        assert torch.equal(result.success, wrong & ~result.skipped)
        assert torch.equal(result.adv[result.skipped], images[result.skipped])
        assert torch.all(result.updates[result.skipped] == 0)
    assert result.success.sum() == 10, "a large eps fools everything"


def test_early_stop_freezes_at_the_first_success(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    stopped = BIM(net, eps=EPS, steps=20, precision="float32").run(images, labels)
    assert stopped.success.any()
    for i in stopped.success.nonzero().flatten().tolist():
        steps = int(stopped.updates[i])
        x, y = images[i : i + 1], labels[i : i + 1]
        same = by_hand(net, x, y, steps=steps, alpha=EPS / 8)
        assert torch.allclose(stopped.adv[i], same[0], atol=2e-6)
        if steps > 1:
            before = by_hand(net, x, y, steps=steps - 1, alpha=EPS / 8)
            assert predicted(net, before).item() == y.item()


def test_the_batch_does_not_matter(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    attack = SDSGSM(net, steps=10)
    whole = attack.run(images, labels)
    order = torch.randperm(12)
    shuffled = attack.run(images[order], labels[order])
    assert torch.equal(shuffled.updates, whole.updates[order])
    assert torch.allclose(shuffled.adv, whole.adv[order], atol=1e-6)
    for i in range(12):
        alone = attack.run(images[i : i + 1], labels[i : i + 1])
        assert torch.equal(alone.updates[0], whole.updates[i])
        assert torch.allclose(alone.adv[0], whole.adv[i], atol=1e-6)


def test_settings_may_differ_by_image(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    eps = torch.linspace(0, 0.1, 12)
    alpha, background = eps / 5, torch.linspace(0, 1, 12)
    whole = SDSGSM(net, eps=eps, alpha=alpha, background=background, steps=5).run(images, labels)
    for i in range(12):
        attack = SDSGSM(net, eps=float(eps[i]), alpha=float(alpha[i]), background=float(background[i]), steps=5)
        alone = attack(images[i : i + 1], labels[i : i + 1])
        assert torch.allclose(alone[0], whole.adv[i], atol=1e-6)
    assert torch.equal(SDSGSM(net, eps=torch.tensor(EPS))(images, labels), SDSGSM(net)(images, labels))


def test_eps_0_returns_the_images_bit_for_bit(net: nn.Module, images: Tensor) -> None:
    images = images.clone()
    images[0, 0, 0, 0], images[1, 0, 0, 0] = -2.98e-8, 1 + 1.2e-7  # within the tolerance
    labels = predicted(net, images)
    for attack in (SDSGSM(net, eps=0.0), PGD(net, eps=0.0), FGSM(net, eps=0.0, early_stop=False)):
        result = attack.run(images, labels)
        assert torch.equal(result.adv, images)
        assert not result.success.any()


def test_targeted_attacks_reach_the_target(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    target = (labels + 2) % 5
    for name in ("ce", "margin", "dlr"):
        attack = Attack(net, eps=0.3, loss=name, steps=40)
        result = attack.run(images, labels, target=target)
        assert torch.equal(result.success, (predicted(net, result.adv) == target) & ~result.skipped)
        assert result.success.sum() >= 8
    # The domain of a targeted attack is about the class that the model predicts.
    expected = occlusion_scores(net, images, predicted(net, images))
    assert torch.allclose(result.scores, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["ce", "margin", "dlr"])
def test_losses_grow_when_ascended(name: str, net: nn.Module, images: Tensor) -> None:
    labels = predicted(net, images)
    attack = BIM(net, loss=name, steps=4, early_stop=False)
    with torch.no_grad():
        before = loss(name, net(images), labels, None)
        after = loss(name, net(attack(images, labels)), labels, None)
    assert torch.all(after > before)


def test_dlr_does_not_depend_on_the_scale_of_the_logits() -> None:
    z, y = torch.randn(6, 5), torch.tensor([0, 1, 2, 3, 4, 0])
    t = (y + 1) % 5
    assert torch.allclose(loss("dlr", z, y, None), loss("dlr", 1e3 * z, y, None), atol=1e-4)
    assert torch.allclose(loss("dlr", z, y, t), loss("dlr", 1e3 * z, y, t), atol=1e-4)
    ranked = z.sort(1, descending=True).values
    other = z.scatter(1, y[:, None], -torch.inf).amax(1)
    expected = -(z.gather(1, y[:, None])[:, 0] - other) / (ranked[:, 0] - ranked[:, 2])
    assert torch.allclose(loss("dlr", z, y, None), expected, atol=1e-5)


def test_passes_are_counted(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    """T updates cost T backward and T + 1 forward passes; occlusion one forward a window."""
    model, seen = Looking(net), {"forward": 0}

    def count(_: nn.Module, inputs: tuple[Tensor], __: Tensor) -> None:
        seen["forward"] += len(inputs[0])

    handle = model.register_forward_hook(count)
    full = BIM(model, steps=6, early_stop=False).run(images, labels)
    assert torch.equal(full.passes.forward, 1 + 6 * (~full.skipped).long())
    # And one of two images that looks for what a pass leaves behind: the count, so there is no trace.
    assert int(full.passes.forward.sum()) + 2 == seen["forward"]
    assert torch.equal(full.passes.backward, torch.where(full.skipped, 0, 6))
    seen["forward"] = 0
    stopped = SDSGSM(model, steps=6).run(images, labels)
    handle.remove()
    assert int(stopped.passes.forward.sum()) == seen["forward"]
    tried = ~stopped.skipped
    assert torch.equal(stopped.passes.forward[tried], 16 + 1 + stopped.updates[tried])
    # Incremental occlusion passes the clean image once more, for the maps that it pastes into.
    domain = Occlusion(method="incremental")
    traced = SDSGSM(net, steps=6, domain=domain, precision="float32").run(images, labels)
    assert torch.equal(traced.updates, stopped.updates)
    assert torch.equal(traced.passes.forward[tried], 16 + 1 + 1 + traced.updates[tried])


def test_passes_do_not_depend_on_the_batch_nor_on_the_memory(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    whole = SDSGSM(net, steps=6).run(images, labels).passes
    bounded = SDSGSM(net, steps=6, max_memory=10**6).run(images, labels).passes
    assert torch.equal(bounded.forward, whole.forward)
    for i in range(12):
        alone = SDSGSM(net, steps=6).run(images[i : i + 1], labels[i : i + 1]).passes
        assert torch.equal(alone.forward[0], whole.forward[i])
        assert torch.equal(alone.backward[0], whole.backward[i])


def test_the_attack_hands_its_limits_to_the_domain(
    net: nn.Module, images: Tensor, labels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    original = Occlusion.measure

    def spy(self: Occlusion, clean: object, **settings: object) -> object:
        calls.append(settings)
        return original(self, clean, **settings)

    monkeypatch.setattr(Occlusion, "measure", spy)
    SDSGSM(net, steps=1, max_memory=12345, backend="reference")(images, labels)
    assert calls == [{"max_memory": 12345, "backend": "reference", "progress": None}]


def test_random_starts_respect_the_domain(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    mask = torch.zeros(12, 16, 16)
    mask[:, 4:9, 3:7] = 1
    attack = SDSGSM(
        net, domain=mask, random_start=True, seed=0, steps=1, alpha=0.0, background=0.2,
        early_stop=False,
    )  # fmt: skip
    result = attack.run(images, labels)
    moved = (result.adv - images)[~result.skipped].abs().amax((0, 1))
    inside = mask[0] == 1
    assert float(moved[~inside].max()) <= 0.2 * EPS + 1e-7
    assert float(moved[~inside].max()) > 0.19 * EPS
    assert float(moved[inside].max()) > 0.95 * EPS


def test_seeds_and_places_beyond_63_bits_do_not_collide(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    starts = [PGD(net, seed=seed, steps=1, alpha=0.0)(images, labels) for seed in (2**63, 2**63 + 1, 2**64 - 1)]
    assert not torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[1], starts[2])


def test_fgsm_steps_by_eps_unless_told_otherwise(net: nn.Module) -> None:
    assert FGSM(net, eps=0.1).alpha == FGSM(net, eps=0.1, alpha=None).alpha == 0.1
    assert FGSM(net, eps=0.1, alpha=0.02).alpha == 0.02


def test_a_bad_gradient_is_named_by_its_place_and_counts_only_where_it_is_used(
    net: nn.Module, images: Tensor, labels: Tensor
) -> None:
    """The gradient of image 5 is NaN once it has moved; images 3 and 7 are skipped."""

    class Poison(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            near = (x - images[5]).abs().flatten(1).amax(1)
            ctx.bad = (near > 0) & (near < 0.1)
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad.masked_fill(ctx.bad[:, None, None, None], math.nan)

    def model(x: Tensor) -> Tensor:
        return net(Poison.apply(x))

    with pytest.raises(ValueError, match=r"the gradient is not finite for images \[5\]"):
        BIM(model, steps=3, early_stop=False)(images, labels)
    labels = labels.clone()
    labels[5] = (labels[5] + 1) % 5  # now it is skipped, and its gradient is nobody's business
    BIM(model, steps=3, early_stop=False)(images, labels)


def test_restarts_only_add_successes(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    settings = {"eps": 0.15, "alpha": 0.0, "steps": 1, "seed": 0}  # luck alone
    once = PGD(net, **settings).run(images, labels)
    often = PGD(net, restarts=20, **settings).run(images, labels)
    assert torch.all(often.success | ~once.success)
    assert torch.equal(often.adv[once.success], once.adv[once.success])
    failed = ~often.success & ~often.skipped
    assert torch.all(often.updates[failed] == 20)
    assert torch.equal(often.success, (predicted(net, often.adv) != labels) & ~often.skipped)
    assert often.success.sum() > once.success.sum()


def test_domains_of_every_kind(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    mask = (torch.rand(12, 16, 16) < 0.3).float()
    given = SDSGSM(net, domain=mask, background=0.0, relax=None).run(images, labels)
    assert torch.equal(given.domain, mask)
    outside = (mask == 0)[:, None].expand_as(images)
    assert torch.equal(given.adv[outside], images[outside])
    called = SDSGSM(net, domain=lambda c, x, y: mask, background=0.0, relax=None)(images, labels)
    assert torch.equal(called, given.adv)
    everywhere = SDSGSM(net, domain=None).run(images, labels)
    assert torch.all(everywhere.domain == 1)
    assert everywhere.scores is None
    by_gradient = SDSGSM(net, domain=Gradient(coverage=0.1)).run(images, labels)
    size = gradient(net, images, labels).abs().sum(1).flatten(1)
    assert torch.equal(by_gradient.domain.flatten(1).sum(1), torch.full((12,), 26.0))
    smallest_in = size.where(by_gradient.domain.flatten(1) == 1, math.inf).amin(1)
    largest_out = size.where(by_gradient.domain.flatten(1) == 0, -math.inf).amax(1)
    assert torch.all(smallest_in >= largest_out)


def test_a_callable_domain_sees_the_classifier(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    domain = Occlusion(patch=4)
    called = SDSGSM(net, domain=lambda c, x, y: domain(c, x, y), precision="float32").run(images, labels)
    direct = SDSGSM(net, domain=domain, precision="float32").run(images, labels)
    assert torch.equal(called.adv, direct.adv)
    assert torch.equal(called.passes.forward, direct.passes.forward + 1)


def test_ablations(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    spatial, smoothing = SpatialOnly(net), SmoothingOnly(net)
    assert isinstance(spatial.domain, Occlusion)
    assert math.isinf(spatial.gain)
    assert smoothing.domain is None
    assert smoothing.gain == 0.5
    steep = SmoothingOnly(net, gain=1e8, steps=3, early_stop=False)(images, labels)
    sign = BIM(net, steps=3, early_stop=False)(images, labels)
    assert torch.allclose(steep, sign, atol=2e-6), "κ → ∞ is the sign"


def test_images_in_other_bounds_and_models_with_normalisation(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])

    def normalising(x: Tensor) -> Tensor:
        return net((x - mean[:, None, None]) / std[:, None, None])

    labels = normalising(images).argmax(1)
    inside = SDSGSM(normalising, steps=6)(images, labels)
    outside = SDSGSM(net, steps=6, mean=mean, std=std.tolist())(images, labels)
    assert torch.allclose(inside, outside, atol=1e-6)
    wide = SDSGSM(
        lambda x: normalising(x / 255), steps=6, eps=8.0, bounds=(0, 255)
    )(255 * images, labels)  # fmt: skip
    assert torch.allclose(wide / 255, inside, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_image_dtypes(dtype: torch.dtype, net: nn.Module, images: Tensor) -> None:
    """The dtype of the result is that of the images; the model's own dtype is respected."""
    images = images.to(dtype)
    labels = predicted(net, images.float())
    result = SDSGSM(net, steps=6).run(images, labels)
    assert result.adv.dtype == dtype
    assert torch.equal(result.success, predicted(net, result.adv.float()) != labels)
    assert float((result.adv.double() - images.double()).abs().max()) <= EPS + torch.finfo(dtype).eps
    wide = SDSGSM(net.double(), steps=6).run(images.double(), labels)
    assert wide.adv.dtype == torch.float64


def test_bfloat16_searches_and_float32_judges(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    strict = SDSGSM(net).run(images, labels)
    search = SDSGSM(net, precision="bfloat16").run(images, labels)
    assert torch.equal(search.success, (predicted(net, search.adv) != labels) & ~search.skipped)
    assert torch.equal(search.skipped, strict.skipped)
    assert abs(int(search.success.sum()) - int(strict.success.sum())) <= 1
    assert not torch.equal(search.adv, strict.adv)


def test_models_may_return_an_object_with_logits(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    wrapped = SDSGSM(lambda x: SimpleNamespace(logits=net(x)), steps=4)(images, labels)
    assert torch.equal(wrapped, SDSGSM(net, steps=4)(images, labels))


def test_channels_last_images(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    laid = images.contiguous(memory_format=torch.channels_last)
    assert torch.allclose(SDSGSM(net, steps=5)(laid, labels), SDSGSM(net, steps=5)(images, labels), atol=1e-6)


def test_labels_of_any_integer_type(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    expected = SDSGSM(net, steps=3)(images, labels)
    for dtype in (torch.int32, torch.uint8):
        assert torch.equal(SDSGSM(net, steps=3)(images, labels.to(dtype)), expected)


def test_an_empty_batch_gives_an_empty_result(net: nn.Module) -> None:
    none, labels = torch.empty(0, 3, 16, 16), torch.empty(0, dtype=torch.int64)
    for attack in (SDSGSM(net), PGD(net), SDSGSM(net, domain=Gradient())):
        result = attack.run(none, labels)
        assert result.adv.shape == none.shape
        assert len(result.success) == len(result.updates) == len(result.passes.forward) == 0
        assert result.metrics().images == 0


def test_a_batch_without_a_correct_image_is_left_alone(net: nn.Module, images: Tensor) -> None:
    labels = (predicted(net, images) + 1) % 5
    result = SDSGSM(net).run(images, labels)
    assert result.skipped.all()
    assert torch.equal(result.adv, images)
    m = result.metrics()
    assert m.attacked == 0
    assert math.isnan(m.success_rate)
    assert m.error_rate == 1


def test_a_zero_gradient_leaves_the_image_alone() -> None:
    """The gradient exists but is zero: no error, no change (METHOD.md, section 3)."""
    net = linear_net(3 * 8 * 8)
    images = torch.rand(4, 3, 8, 8)
    labels = predicted(net, images)
    result = SDSGSM(lambda x: net(x).detach() + 0 * net(x), steps=3).run(images, labels)
    assert torch.equal(result.adv, images)
    assert not result.success.any()


def test_metrics_of_a_result(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    result = SDSGSM(net).run(images, labels)
    m = result.metrics()
    tried = ~result.skipped
    delta = (result.adv - images)[tried].flatten(1).double()
    assert (m.images, m.skipped, m.attacked) == (12, 2, 10)
    assert m.success_rate == pytest.approx(float(result.success.sum()) / 10)
    assert m.error_rate == pytest.approx((float(result.success.sum()) + 2) / 12)
    assert m.l2 == pytest.approx(float(delta.norm(dim=1).mean()))
    assert m.linf == pytest.approx(float(delta.abs().amax(1).mean()))
    assert m.l1 == pytest.approx(float(delta.abs().sum(1).mean()))
    assert m.updates == pytest.approx(float(result.updates[tried].double().mean()))
    rounded = (result.adv * 255).round() / 255
    fooled = (predicted(net, rounded) != labels)[tried]
    assert m.success_rate_8bit == pytest.approx(float(fooled.double().mean()))
    assert 0.5 < m.ssim < 1
    assert set(m.as_dict()) >= {"psnr_8bit", "ssim_8bit", "linf_8bit", "forwards", "backwards"}


def test_a_result_describes_itself_in_a_line(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    text = repr(BIM(net, eps=0.5).run(images, labels))
    assert text == (
        "AttackResult(12 images: 10 attacked, 10 fooled, 2 skipped as misclassified before; "
        "adv (12, 3, 16, 16) torch.float32)"
    )


def test_progress_is_reported(
    net: nn.Module, images: Tensor, labels: Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[str, int, int]] = []
    SDSGSM(net, steps=4, progress=lambda *call: calls.append(call)).run(images, labels)
    assert ("occlusion", 12 * 16, 12 * 16) in calls
    attacked = [(done, total) for stage, done, total in calls if stage == "attack"]
    assert attacked[0] == (2, 12), "two images are skipped"
    assert attacked[-1] == (12, 12)
    assert attacked == sorted(attacked)
    assert capsys.readouterr().err == ""
    SDSGSM(net, steps=4, progress=True)(images, labels)
    assert "attack 12/12\n" in capsys.readouterr().err
    SDSGSM(net, steps=4)(images, labels)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("shape", [(3,), (3, 1, 1), (1, 3, 1, 1)])
def test_normalisation_by_tensors_and_arrays(shape: tuple[int, ...]) -> None:
    net, images = convnet(), torch.rand(3, 3, 16, 16)
    mean, std = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
    labels = predicted(lambda x: net(x.sub(torch.tensor(mean)[:, None, None])), images)
    expected = BIM(net, mean=mean, std=std, steps=3)(images, labels)
    for kind in (torch.tensor, np.array):
        given = [kind(value).reshape(shape) for value in (mean, std)]
        found = BIM(net, mean=given[0], std=given[1], steps=3)(images, labels)
        assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    "domain", [Occlusion(patch=4), Occlusion(patch=4, rule="flip", fill=torch.rand(12, 3, 16, 16))]
)
@pytest.mark.parametrize("wrong", [0, 5, 12])
def test_windows_of_skipped_images_may_be_left_out(
    domain: Occlusion, wrong: int, net: nn.Module, images: Tensor
) -> None:
    labels = predicted(net, images)
    labels[:wrong] = (labels[:wrong] + 1) % 5
    attack = SDSGSM(net, eps=EPS, steps=4, domain=domain)
    whole, part = attack.run(images, labels), attack.without_skipped().run(images, labels)
    for name in ("success", "skipped", "updates"):
        assert torch.equal(getattr(whole, name), getattr(part, name)), name
    torch.testing.assert_close(part.adv, whole.adv, atol=1e-6, rtol=0)
    torch.testing.assert_close(attack(images, labels), part.adv, atol=1e-6, rtol=0)
    assert whole.scores is not None
    assert part.scores is not None
    assert part.scores.dtype == whole.scores.dtype
    torch.testing.assert_close(part.domain[wrong:], whole.domain[wrong:])
    torch.testing.assert_close(part.scores[wrong:], whole.scores[wrong:], atol=1e-6, rtol=0)
    assert not part.domain[:wrong].any()
    assert not part.scores[:wrong].any()
    assert torch.equal(part.passes.forward[wrong:], whole.passes.forward[wrong:])
    assert (part.passes.forward[:wrong] < whole.passes.forward[:wrong]).all()
