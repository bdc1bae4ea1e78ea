"""The public functions with whatever a caller might hand them: documented errors or results that hold."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nets import convnet
from torch import Tensor

from sdsgsm_fast import BIM, SDSGSM, MinimalSDSGSM, Occlusion, decision_domain, metrics, occlusion_map, ops

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "60"))
DOCUMENTED = (ValueError, TypeError)
FUZZ = settings(
    max_examples=EXAMPLES, deadline=None, derandomize="FUZZ_EXAMPLES" not in os.environ, database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip

DTYPES = (
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.uint8,
    torch.int64,
    torch.complex64,
    torch.bool,
)
SPECIAL = (math.nan, math.inf, -math.inf, 1e38, -1e38, 1e-45, -0.0, 2.0, 0.0, 1.0)
NUMBERS = st.one_of(
    st.sampled_from([0, 1, 2, -1, 0.5, 1 / 255, 8 / 255, 10**30, True, None, "x", *SPECIAL]),
    st.floats(), st.integers(-3, 40), st.floats(0, 1),
)  # fmt: skip


@st.composite
def images_(draw: Any) -> Tensor:
    """Images, most of them sound: other shapes, dtypes, strides and values now and then."""
    shape = [draw(st.integers(1, 3)), 3, draw(st.integers(6, 14)), draw(st.integers(6, 14))]
    odd = draw(st.sampled_from(["shape", "dtype", "value", *["nothing"] * 6]))
    if odd == "shape":
        shape = draw(st.lists(st.integers(0, 5), max_size=5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    found = torch.rand(shape, generator=generator, dtype=torch.float64)
    if odd == "value" and found.numel():
        found.view(-1)[draw(st.integers(0, found.numel() - 1))] = draw(st.sampled_from(SPECIAL))
    found = found.to(draw(st.sampled_from(DTYPES)) if odd == "dtype" else torch.float32)
    layout = draw(st.sampled_from(["plain", "plain", "transposed", "stepped", "expanded", "gradient"]))
    if layout == "transposed" and found.ndim >= 2:
        return found.transpose(-1, -2)
    if layout == "stepped" and found.ndim:
        return found.repeat_interleave(2, -1)[..., ::2]
    if layout == "expanded" and found.ndim and len(found):
        return found[:1].expand_as(found)
    return found.requires_grad_() if layout == "gradient" and found.is_floating_point() else found


@st.composite
def labels_(draw: Any, count: int) -> Any:
    if draw(st.integers(0, 7)) == 0:
        return draw(
            st.sampled_from(
                [None, 3, "x", torch.zeros(count + 1, dtype=torch.long), torch.rand(count), torch.full((count,), 99)]
            )
        )
    return torch.tensor(draw(st.lists(st.integers(0, 4), min_size=count, max_size=count)), dtype=torch.long)


def settings_(**known: Any) -> Any:
    """Some of the settings by name: most values sound, any value now and then."""

    @st.composite
    def draw_(draw: Any) -> dict[str, Any]:
        chosen = draw(st.fixed_dictionaries({}, optional=known))
        if draw(st.integers(0, 3)) == 0:
            chosen[draw(st.sampled_from(sorted(known)))] = draw(NUMBERS)
        return chosen

    return draw_()


def _none_after(error: Exception) -> None:
    assert str(error)


RESULTS: Counter[str] = Counter()


def outcome(name: str, call: Callable[[], Any], model: Callable[[], Any] | None = None) -> Any:
    """The result; None after a documented error, or one that the model raises of its own accord."""
    RESULTS[f"{name}, tried"] += 1
    try:
        found = call()
    except DOCUMENTED as error:
        return _none_after(error)
    except RuntimeError:
        assert model is not None
        with pytest.raises(RuntimeError):
            model()
        return None
    RESULTS[name] += 1
    return found


@pytest.fixture(autouse=True)
def _not_all_are_errors(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    name = request.node.name.removeprefix("test_")
    assert RESULTS[name] > 0.25 * RESULTS[f"{name}, tried"] > 0, RESULTS


@pytest.fixture(scope="module")
def net() -> torch.nn.Module:
    torch.manual_seed(0)
    return convnet(spread=3.0, train_norm=True)


class Untouched:
    """That a model is as it was, to the bit."""

    def __init__(self, net: torch.nn.Module) -> None:
        self.net, self.state = net, {k: v.clone() for k, v in net.state_dict().items()}

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        assert all(torch.equal(v, self.state[k]) for k, v in self.net.state_dict().items())
        assert all(module.training for module in self.net.modules())
        assert all(p.requires_grad and p.grad is None for p in self.net.parameters())
        assert torch.is_grad_enabled()


ATTACKS = settings_(
    eps=st.floats(0, 0.2), alpha=st.floats(0.001, 0.1), steps=st.integers(1, 3), gain=st.sampled_from([0.5, math.inf]),
    decay=st.floats(0, 1), normalize=st.sampled_from(["mean_abs", "max_abs", "rms", "none"]),
    loss=st.sampled_from(["ce", "margin", "dlr"]), background=st.floats(0, 1), relax=st.sampled_from([None, 0.5]),
    restarts=st.integers(1, 2), levels=st.sampled_from([None, 2, 256]), refine=st.integers(0, 2), seed=st.integers(0, 9),
    early_stop=st.booleans(), random_start=st.booleans(), batch_size=st.integers(1, 3), growth=st.floats(1, 2),
    domain=st.sampled_from([None, "occlusion", "zeros", "bad"]),
)  # fmt: skip


@FUZZ
@given(data=st.data())
def test_attacks(net: torch.nn.Module, data: st.DataObject) -> None:
    images = data.draw(images_())
    labels = data.draw(labels_(len(images) if images.ndim else 0))
    kind, chosen = data.draw(st.sampled_from([SDSGSM, BIM, MinimalSDSGSM])), data.draw(ATTACKS)
    domain = chosen.get("domain")
    if domain == "occlusion":
        chosen["domain"] = Occlusion(patch=5, stride=3)
    elif domain == "zeros":
        chosen["domain"] = torch.zeros(images.shape[0] if images.ndim else 0, *images.shape[2:])
    before = images.detach().clone()
    with Untouched(net):
        result = outcome("attacks", lambda: kind(net, **chosen).run(images, labels), lambda: net(images))
    assert torch.equal(images.detach().nan_to_num(), before.nan_to_num()), "images are not touched"
    if result is None:
        return
    adv, eps = result.adv, float(chosen.get("eps", 8 / 255))
    assert adv.shape == images.shape
    assert adv.dtype == images.dtype
    assert bool(adv.isfinite().all())
    if adv.numel():
        assert 0 <= float(adv.min()) <= float(adv.max()) <= 1
        if chosen.get("levels") is None and kind is not MinimalSDSGSM:
            assert float((adv.double() - images.detach().double()).abs().max()) <= eps + torch.finfo(adv.dtype).eps
    assert not bool((result.success & result.skipped).any())


@FUZZ
@given(data=st.data())
def test_occlusion_maps(net: torch.nn.Module, data: st.DataObject) -> None:
    images = data.draw(images_())
    labels = data.draw(labels_(len(images) if images.ndim else 0))
    chosen = data.draw(settings_(
        patch=st.one_of(st.integers(1, 9), st.tuples(st.integers(1, 5), st.integers(1, 5))), stride=st.integers(1, 9),
        score=st.sampled_from(["prob", "log_prob", "logit", "margin"]), fill=st.sampled_from([0.0, (0.1, 0.2, 0.3), "mean", "blur"]),
        method=st.sampled_from(["auto", "dense"]), batch_size=st.integers(1, 5), max_memory=st.integers(1, 10**6),
    ))  # fmt: skip
    with Untouched(net):
        found = outcome("occlusion_maps", lambda: occlusion_map(net, images, labels, **chosen), lambda: net(images))
    if found is not None:
        assert found.shape == (images.shape[0], *images.shape[2:])
        assert bool(found.isfinite().all())


@FUZZ
@given(data=st.data())
def test_update(data: st.DataObject) -> None:
    images = data.draw(images_())
    adv, grad = (torch.rand_like(images.detach()) if images.is_floating_point() else images for _ in range(2))
    if data.draw(st.integers(0, 9)) == 0:
        grad = data.draw(images_())
    domain = data.draw(st.sampled_from([None, "ones", "bad"]))
    count, *rest = images.shape if images.ndim == 4 else (0, 0, 1, 1)
    given_domain = (
        torch.rand(count, *rest[1:]).to(images.dtype) if domain == "ones" else torch.ones(2, 2) if domain else None
    )
    sound: dict[str, Any] = {"eps": 0.1, "alpha": 0.01, "background": 0.5}
    chosen = sound | data.draw(settings_(
        eps=st.floats(0, 1), alpha=st.floats(0, 1), background=st.floats(0, 1), gain=st.floats(0.1, 10),
        decay=st.floats(0, 1), bounds=st.sampled_from([(0.0, 1.0), (1.0, 0.0), (0.0, math.nan)]), sign=st.sampled_from([1.0, -1.0]),
        normalize=st.sampled_from(["mean_abs", "none"]), backend=st.sampled_from(["auto", "reference", "native"]),
    ))  # fmt: skip
    found = outcome("update", lambda: ops.update(adv, images, grad, given_domain, **chosen))
    if (
        found is not None
        and found[0].numel()
        and bool(images.detach().isfinite().all())
        and bool(grad.detach().isfinite().all())
    ):
        change = (found[0].double() - images.detach().double()).abs().max()
        inside = bool(((images.detach() >= 0) & (images.detach() <= 1)).all())
        assert not inside or float(change) <= float(chosen["eps"]) + torch.finfo(images.dtype).eps


@FUZZ
@given(data=st.data())
def test_domains_and_metrics(data: st.DataObject) -> None:
    images = data.draw(images_())
    scores = images.detach()[:, 0] if images.ndim == 4 and images.shape[1] else images.detach()
    chosen = data.draw(settings_(
        rule=st.sampled_from(["top", "threshold", "flip", "soft"]), coverage=st.floats(0, 1), threshold=st.floats(0, 1),
    ))  # fmt: skip
    found = outcome("domains_and_metrics", lambda: decision_domain(scores, **chosen))
    if found is not None:
        assert found.shape == scores.shape
        assert bool(((found >= 0) & (found <= 1)).all())
    if images.ndim == 4 and images.is_floating_point() and images.numel():
        outcome("ssim", lambda: metrics.ssim(images.detach(), images.detach()))
