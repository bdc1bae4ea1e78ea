"""Bad input gets one exception that names the argument, what came and what was expected."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from nets import convnet
from torch import Tensor, nn

from sdsgsm_fast import (
    PGD,
    SDSGSM,
    Attack,
    Gradient,
    Occlusion,
    decision_domain,
    occlusion_map,
    ops,
)
from sdsgsm_fast.common import checks

torch.manual_seed(0)  # for the values below, which name the tests
IMAGES = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 3])


class Untouched(nn.Module):
    """A model that fails the test when it is called: the check must come before any work."""

    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("the model was called before the arguments were checked")


def with_value(index: tuple[int, ...], value: float) -> Tensor:
    images = IMAGES.clone()
    images[index] = value
    return images


BATCHES: list[tuple[str, Tensor | Any, Tensor | Any, type[Exception], str]] = [
    (
        "0..255 images", IMAGES * 255, LABELS, ValueError,
        "images: values must lie in bounds [0, 1] (tolerance 1e-06), found 0.0... "
        "divide by 255 or pass bounds=(0, 255)",
    ),
    (
        "normalised images", IMAGES * 2 - 1, LABELS, ValueError,
        "images: values must lie in bounds [0, 1] (tolerance 1e-06), found -... before normalisation",
    ),
    ("slightly out", with_value((0, 0, 0, 0), 1.00001), LABELS, ValueError, "pass the right bounds"),
    ("NaN", with_value((2, 0, 0, 0), math.nan), LABELS, ValueError,
     "images: expected finite values, found NaN or infinity in images [2]"),
    ("infinity", with_value((1, 0, 0, 0), math.inf), LABELS, ValueError,
     "images: expected finite values, found NaN or infinity in images [1]"),
    ("uint8 images", (IMAGES * 255).byte(), LABELS, TypeError,
     "images: expected a floating dtype, found torch.uint8"),
    ("one image", IMAGES[0], LABELS, ValueError,
     "images: expected shape (B, C, H, W), found (3, 16, 16)"),
    ("numpy images", IMAGES.numpy(), LABELS, TypeError, "images: expected a tensor, found ndarray"),
    ("no pixels", IMAGES[:, :, :0], LABELS, ValueError, "images: expected at least one value"),
    ("float labels", IMAGES, LABELS.float(), TypeError,
     "labels: expected an integer dtype, found torch.float32"),
    ("list labels", IMAGES, [0, 1, 2, 3], TypeError, "labels: expected a tensor, found list"),
    ("too few labels", IMAGES, LABELS[:3], ValueError,
     "labels: expected shape (4,) as images, found (3,)"),
    ("one-hot labels", IMAGES, torch.eye(5, dtype=torch.int64)[:4], ValueError,
     "labels: expected shape (4,) as images, found (4, 5)"),
    ("labels elsewhere", IMAGES, LABELS.to("meta"), ValueError,
     "labels: expected device cpu as images, found meta"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("images", "labels", "error", "message"),
    [case[1:] for case in BATCHES],
    ids=[case[0] for case in BATCHES],
)
def test_bad_batches(images: Any, labels: Any, error: type[Exception], message: str) -> None:
    pattern = ".*".join(re.escape(part) for part in message.split("..."))
    for run in (SDSGSM(Untouched()), lambda x, y: occlusion_map(Untouched(), x, y)):
        with pytest.raises(error, match=pattern):
            run(images, labels)


def test_float_rounding_at_the_bounds_is_tolerated() -> None:
    """Torchattacks refuses −2.98e-8."""
    images = with_value((0, 0, 0, 0), -2.98e-8)
    images[0, 0, 0, 1] = 1 + 5e-7
    SDSGSM(convnet(), steps=1)(images, LABELS)
    SDSGSM(convnet(), steps=1, bounds=(0, 255), eps=8.0)(images * 255, LABELS)


SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"eps": -0.1}, "eps: expected a finite number of at least 0, found -0.1"),
    ({"eps": math.nan}, "eps: expected a finite number of at least 0, found nan"),
    ({"eps": "8/255"}, "eps: expected a finite number of at least 0, found '8/255'"),
    ({"eps": 8}, "eps: expected at most 1, the width of bounds, found 8; 8/255 of it is usual"),
    ({"eps": torch.rand(4, 1)}, "eps: expected a number or shape (4,), found shape (4, 1)"),
    ({"eps": -torch.rand(4)}, "eps: expected finite values of at least 0"),
    ({"alpha": -1}, "alpha: expected a finite number of at least 0, found -1"),
    ({"steps": 0}, "steps: expected an integer of at least 1, found 0"),
    ({"steps": 2.0}, "steps: expected an integer of at least 1, found 2.0"),
    ({"background": 1.5}, "background: expected values in [0, 1], found 1.5"),
    ({"relax": 0}, "relax: expected a number in (0, 1], or None, found 0"),
    ({"gain": 0}, "gain: expected a number above 0, or math.inf, found 0"),
    ({"gain": math.nan}, "gain: expected a number above 0, or math.inf, found nan"),
    ({"decay": -1}, "decay: expected a finite number of at least 0, found -1"),
    ({"normalize": "l2"}, "normalize: expected one of mean_abs, max_abs, rms, none, found 'l2'"),
    ({"loss": "mse"}, "loss: expected one of ce, margin, dlr, jitter, found 'mse'"),
    ({"restarts": 0}, "restarts: expected an integer of at least 1, found 0"),
    ({"restarts": 2}, "restarts: a second attempt needs random_start=True to differ"),
    ({"bounds": (1, 0)}, "bounds: expected finite (lo, hi) with lo < hi, found (1, 0)"),
    ({"precision": "int8"}, "precision: expected one of auto, float32, bfloat16, found 'int8'"),
    ({"backend": "cuda"}, "backend: expected one of auto, reference, native, triton, found 'cuda'"),
    ({"max_memory": 0}, "max_memory: expected an integer of at least 1, found 0"),
    ({"seed": -1}, "seed: expected an integer of at least 0, found -1"),
    ({"seed": 2**64}, "seed: expected an integer below 2**64, found 18446744073709551616"),
    ({"bounds": (0, 1, 2)}, "bounds: expected finite (lo, hi) with lo < hi, found (0, 1, 2)"),
    ({"bounds": 1.0}, "bounds: expected finite (lo, hi) with lo < hi, found 1.0"),
    ({"eps": 1e39}, "eps: expected a finite number of at least 0, found 1e+39"),
    ({"decay": 1e39}, "decay: expected a finite number of at least 0, found 1e+39"),
]


@pytest.mark.parametrize(("settings", "message"), SETTINGS, ids=[str(s[0]) for s in SETTINGS])
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Attack(Untouched(), **settings)


def test_settings_of_a_wrong_type() -> None:
    with pytest.raises(TypeError, match="model: expected a callable, found int"):
        Attack(3)
    with pytest.raises(TypeError, match="domain: expected Occlusion, Gradient, None, a tensor"):
        Attack(Untouched(), domain="occlusion")
    with pytest.raises(TypeError, match="eps: expected a floating dtype"):
        Attack(Untouched(), eps=torch.tensor([1, 2]))


LATE: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"eps": torch.rand(3)}, {}, "eps: expected a number or shape (4,), found shape (3,)"),
    ({"background": torch.rand(5)}, {}, "background: expected a number or shape (4,)"),
    ({"mean": (0.5, 0.5)}, {}, "mean: expected one value or one for each of 3 channels, found 2"),
    ({"std": (0.5, 0.0, 1.0)}, {}, "std: expected positive values, found [0.5, 0.0, 1.0]"),
    ({"mean": math.nan}, {}, "mean: expected finite values"),
    ({"domain": Occlusion(patch=17)}, {}, "patch: must fit into the image of 16×16, found (17, 17)"),
    ({"domain": Occlusion(fill=(0, 1))}, {}, "fill: expected one value or one for each of 3"),
    ({"domain": torch.rand(4, 16, 15)}, {}, "domain: expected shape (4, 16, 16)"),
    ({"domain": torch.rand(4, 16, 16) * 2}, {}, "domain: expected values in [0, 1]"),
    ({"domain": lambda c, x, y: x.clone()}, {}, "domain: expected shape (4, 16, 16), found (4, 3, 16, 16)"),
    ({}, {"target": LABELS}, "target: expected classes other than labels, found the same for images"),
    ({}, {"target": LABELS[:2]}, "target: expected shape (4,) as images, found (2,)"),
    ({}, {"target": LABELS + 2}, "target: expected 0..4, as the model has 5 classes, found 2..5"),
    ({}, {"index": torch.arange(3)}, "index: expected shape (4,) as images, found (3,)"),
    ({}, {"index": torch.arange(4) - 1}, "index: expected values of at least 0, found -1"),
    ({"domain": Occlusion(patch=8), "mean": (0.1, 0.2)}, {}, "mean: expected one value or one for"),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "given", "message"), LATE, ids=[s[2] for s in LATE])
def test_settings_that_do_not_fit_the_batch(settings: dict[str, Any], given: dict[str, Any], message: str) -> None:
    needs_the_model = callable(settings.get("domain")) and not isinstance(settings["domain"], (Occlusion, torch.Tensor))
    net = convnet() if needs_the_model or "model has" in message else Untouched()
    with pytest.raises(ValueError, match=re.escape(message)):
        Attack(net, **settings).run(IMAGES, LABELS, **given)


def broken(output: Callable[[Tensor], Any]) -> nn.Module:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return output(x)

    return Broken()


MODELS: list[tuple[Callable[[Tensor], Any], type[Exception], str]] = [
    (lambda x: torch.eye(5)[LABELS], ValueError,
     "model: its output does not depend on the images, no gradient flows"),
    (lambda x: torch.eye(5)[LABELS].requires_grad_() * 1, ValueError,
     "model: its output does not depend on the images, no gradient flows"),
    (lambda x: x.mean((2, 3))[:, :0], ValueError,
     "model: expected logits of shape (4, K) with at least two classes, found (4, 0)"),
    (lambda x: x.flatten(1)[:2], ValueError, "model: expected logits of shape (4, K)"),
    (lambda x: x, ValueError, "model: expected logits of shape (4, K)"),
    (lambda x: (x.flatten(1), 0), TypeError,
     "model: expected logits, found a tuple of (Tensor, int); wrap it so that it returns one of them"),
    (lambda x: x.flatten(1).long(), TypeError, "model: expected floating logits, found torch.int64"),
    (lambda x: x.flatten(1)[:, :3], ValueError,
     "labels: expected 0..2, as the model has 3 classes, found 0..3"),
    (lambda x: (x.flatten(1)[:, :5] - x.flatten(1)[:, :5]).sqrt(), ValueError,
     "model: the gradient is not finite for images [0]"),
]  # fmt: skip


def test_normalisation_that_is_no_number() -> None:
    with pytest.raises(TypeError, match="mean: expected numbers, one or one a channel, found 'imag"):
        Attack(Untouched(), mean="imagenet").run(IMAGES, LABELS)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="fill: expected numbers, one or one a channel, found None"):
        occlusion_map(Untouched(), IMAGES, fill=None)  # type: ignore[arg-type]


@pytest.mark.parametrize(("output", "error", "message"), MODELS, ids=[m[2][:60] for m in MODELS])
def test_bad_models(output: Callable[[Tensor], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        SDSGSM(broken(output), domain=None)(IMAGES, LABELS)


def test_occlusion_of_a_model_with_nan_logits() -> None:
    net = convnet()

    def model(x: Tensor) -> Tensor:
        z = net(x)
        return torch.where((x[:, 0, 0, 0] == 0)[:, None], torch.nan, z)

    with pytest.raises(ValueError, match=r"occlusion scores are not finite for images \[0, 1, 2, 3\]"):
        occlusion_map(model, IMAGES)


def test_negative_labels() -> None:
    with pytest.raises(ValueError, match=re.escape("labels: expected 0..4, as the model has 5")):
        SDSGSM(convnet())(IMAGES, LABELS - 1)
    with pytest.raises(ValueError, match=re.escape("labels: expected 0..4, as the model has 5")):
        occlusion_map(convnet(), IMAGES, LABELS - 1)


def test_a_model_on_another_device() -> None:
    with pytest.raises(ValueError, match="images: expected device meta as the model, found cpu"):
        SDSGSM(convnet().to("meta"))(IMAGES, LABELS)


def test_dlr_needs_enough_classes() -> None:
    def few(x: Tensor) -> Tensor:
        return x.flatten(1)[:, :2]

    labels = few(IMAGES).argmax(1)
    with pytest.raises(ValueError, match="loss: 'dlr' needs 3 classes, the model has 2"):
        PGD(few, loss="dlr")(IMAGES, labels)
    with pytest.raises(ValueError, match="loss: 'dlr' needs 4 classes, the model has 2"):
        PGD(few, loss="dlr").run(IMAGES, labels, target=1 - labels)


def test_bad_domains() -> None:
    for settings, message in [
        ({"rule": "best"}, "rule: expected one of top, threshold, flip, soft, found 'best'"),
        ({"coverage": 0}, "coverage: expected a number in (0, 1], found 0"),
        ({"threshold": 2}, "threshold: expected a number in [0, 1], found 2"),
    ]:
        for make in (Occlusion, Gradient, lambda **s: decision_domain(torch.rand(1, 4, 4), **s)):
            with pytest.raises(ValueError, match=re.escape(message.split(" top")[0])):
                make(**settings)
    with pytest.raises(ValueError, match="score: expected one of prob, log_prob, logit, margin"):
        Occlusion(score="probability")
    with pytest.raises(ValueError, match="method: expected one of auto, dense"):
        occlusion_map(Untouched(), IMAGES, method="magic")
    with pytest.raises(ValueError, match="stride: must not exceed the patch"):
        Occlusion(patch=4, stride=5)
    with pytest.raises(ValueError, match="map: expected finite values"):
        decision_domain(torch.full((1, 4, 4), math.nan))
    with pytest.raises(ValueError, match="patch: expected a positive int"):
        Occlusion(patch=0)
    with pytest.raises(ValueError, match="rule: expected one of top, threshold, soft, found 'flip'"):
        Gradient(rule="flip")
    with pytest.raises(ValueError, match="flips: rule 'flip' needs flips and patch"):
        decision_domain(torch.rand(1, 4, 4), rule="flip")
    with pytest.raises(ValueError, match=re.escape("flips: expected shape (1, 4)")):
        decision_domain(torch.rand(1, 4, 4), rule="flip", patch=2, flips=torch.ones(1, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match=re.escape("map: expected a floating (B, H, W)")):
        decision_domain(torch.ones(4, 4))


def test_bad_operator_arguments() -> None:
    x, m = torch.rand(2, 3, 8, 8), torch.rand(2, 8, 8)
    good = {"eps": 0.1, "alpha": 0.1, "background": 0.5}

    def fails(error: type[Exception], message: str, *args: Any, **settings: Any) -> None:
        with pytest.raises(error, match=re.escape(message)):
            ops.update(*args, **{**good, **settings})

    fails(ValueError, "adv: expected shape (2, 3, 8, 8), found (2, 3, 8, 7)", x[..., :7], x, x, m)
    fails(TypeError, "adv: expected torch.float32 as images, found torch.float64", x.double(), x, x, m)
    fails(TypeError, "grad: expected a floating dtype", x, x, x.long(), m)
    fails(TypeError, "grad: expected a floating dtype", x, x, x.to(torch.float8_e5m2), m)
    fails(
        ValueError,
        "eps: expected a finite number of at least 0, found nan",
        x,
        x,
        x,
        m,
        eps=math.nan,
    )
    fails(ValueError, "alpha: expected a finite number of at least 0, found -1", x, x, x, m, alpha=-1)
    fails(TypeError, "eps: expected a floating dtype", x, x, x, m, eps=torch.ones(2).int())
    fails(ValueError, "grad: expected device cpu as images, found meta", x, x, x.to("meta"), m)
    fails(ValueError, "domain: expected shape (2, 8, 8), found (2, 8, 7)", x, x, x, m[..., :7])
    fails(ValueError, "eps: expected shape (2,), found (3,)", x, x, x, m, eps=torch.rand(3))
    fails(TypeError, "active: expected torch.bool", x, x, x, m, active=torch.ones(2))
    fails(ValueError, "active: expected shape (2,)", x, x, x, m, active=torch.ones(3).bool())
    fails(TypeError, "momentum: expected torch.float32", x, x, x, m, momentum=x.double())
    fails(ValueError, "sign: expected 1 or -1, found 0", x, x, x, m, sign=0)
    fails(ValueError, "gain: expected a number above 0", x, x, x, m, gain=-1)
    fails(ValueError, "normalize: expected one of", x, x, x, m, normalize="l1")
    with pytest.raises(ValueError, match=re.escape("count: expected first + count ≤ 4, found 5")):
        ops.occlude(x, 3, 2, patch=4)
    with pytest.raises(ValueError, match="first: expected an integer of at least 0"):
        ops.occlude(x, -1, 2, patch=4)
    for dtype in (torch.int8, torch.float8_e5m2):
        with pytest.raises(TypeError, match="dtype: expected a floating dtype"):
            ops.occlude(x, 0, 1, patch=4, dtype=dtype)
    with pytest.raises(ValueError, match=re.escape("scores: expected shape (B, 2, 2), found (2, 5)")):
        ops.window_mean(torch.rand(2, 5), 8, 8, patch=4)
    with pytest.raises(TypeError, match="scores: expected a floating dtype"):
        ops.window_mean(torch.ones(2, 4, dtype=torch.int64), 8, 8, patch=4)


def test_gradients_whose_sum_overflows_are_finite() -> None:
    grad = torch.full((3, 3, 4, 4), 3e38)
    checks.finite_gradient(grad)
    grad[1, 0, 0, 0], grad[1, 0, 0, 1] = math.inf, -math.inf
    with pytest.raises(ValueError, match=r"not finite for images \[1\]"):
        checks.finite_gradient(grad)
    grad[2, 1, 1, 1] = math.nan
    with pytest.raises(ValueError, match=r"not finite for images \[11, 12\]"):
        checks.finite_gradient(grad, torch.tensor([10, 11, 12]))
