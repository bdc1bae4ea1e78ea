"""What is kept of a model between calls is used while it is that model, and not a moment longer."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from nets import Looking
from torch import Tensor, nn

from sdsgsm_fast import SDSGSM, occlusion_scores
from sdsgsm_fast.engine import window_runner as replay
from sdsgsm_fast.engine.cache import PlanCache
from sdsgsm_fast.engine.trace import Graph

SETTINGS: dict[str, Any] = {"patch": 4, "score": "logit"}


@pytest.fixture
def lowered(monkeypatch: pytest.MonkeyPatch) -> list[Graph]:
    """Every graph that was worked out anew."""
    seen: list[Graph] = []
    own = replay.lower

    def watched(graph: Graph, *arguments: Any) -> Any:
        seen.append(graph)
        return own(graph, *arguments)

    monkeypatch.setattr(replay, "lower", watched)
    monkeypatch.setattr(replay, "_PLANS", PlanCache())
    return seen


def right(model: Callable[[Tensor], Any], images: Tensor, **settings: Any) -> bool:
    """Whether the scores are those of passes through the model itself, one a window."""
    found = occlusion_scores(model, images, **SETTINGS | settings)
    dense = {**SETTINGS, **settings, "method": "dense"}
    expected = occlusion_scores(Looking(model), images, **dense)
    assert float(expected.abs().max()) > 1e-3
    return torch.allclose(found, expected, atol=1e-5)


class Knobs(nn.Module):
    """A network that behaves by what is set on it."""

    __slots__ = ("slot",)

    def __init__(self) -> None:
        super().__init__()
        self.net, self.power, self.steps = zoo.residual(), 1.0, [torch.ones(())]
        self.array, self.slot = np.ones(1), 1.0
        self.register_buffer("shift", torch.zeros(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        for factor in self.steps:
            x = x * factor
        return self.net((x + self.shift) * (self.power * self.slot * float(self.array[0])))


CHANGES: dict[str, Callable[[Knobs], Any]] = {
    "a step of an optimiser": lambda m: torch.optim.SGD(m.parameters(), 0.1).step(),
    "a weight behind autograd's back": lambda m: m.net.head.weight.data.mul_(1.5),
    "one bit of one weight": lambda m: m.net.head.weight.data[1, :3].neg_(),
    "a weight through NumPy": lambda m: m.net.head.weight.detach().numpy().__imul__(1.5),
    "another parameter": lambda m: setattr(m.net.head, "weight", nn.Parameter(-m.net.head.weight.detach())),
    "a buffer": lambda m: m.shift.fill_(0.3),
    "a tensor in a list, behind autograd's back": lambda m: m.steps[0].data.mul_(1.5),
    "an array": lambda m: m.array.__imul__(2),
    "a slot": lambda m: setattr(m, "slot", 0.5),
    "an attribute": lambda m: setattr(m, "power", 0.5),
    "a list": lambda m: m.steps.append(0.7),
    "a state": lambda m: m.load_state_dict({k: 0.9 * v for k, v in m.state_dict().items()}),
    "another layer": lambda m: setattr(m.net, "head", nn.Sequential(m.net.head, nn.Softplus())),
    "a hook": lambda m: m.net.register_forward_hook(lambda _, __, out: 2 * out),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_the_model_is_seen(change: str, lowered: list[Graph]) -> None:
    model, images = Knobs().eval(), torch.rand(3, 3, 16, 16)
    for p in model.parameters():
        p.grad = torch.rand_like(p)
    assert right(model, images)
    assert right(model, images)
    before = occlusion_scores(model, images, **SETTINGS)
    assert len(lowered) == 1, "one that has not changed is not worked out again"
    CHANGES[change](model)
    assert not torch.allclose(occlusion_scores(Looking(model), images, **SETTINGS), before)
    assert right(model, images)
    assert len(lowered) == 2


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_kept_plans_give_the_same_bits(precision: str, lowered: list[Graph]) -> None:
    model, settings = zoo.residual().eval(), {**SETTINGS, "precision": precision}
    batches = [torch.rand(n, 3, 20, 20) for n in (1, 70, 5)]
    found = [occlusion_scores(model, images, **settings) for images in batches]
    once = len(lowered)
    for images, scores in zip(batches, found, strict=True):
        expected = occlusion_scores(copy.deepcopy(model), images, **settings)
        assert torch.equal(scores, expected)
    assert once == (1 if precision == "float32" else 2)
    assert len(lowered) == once * (1 + len(batches))


def test_settings_share_a_trace_and_sizes_do_not(lowered: list[Graph]) -> None:
    model, images = zoo.residual().eval(), torch.rand(3, 3, 16, 16)
    variations: list[dict[str, Any]] = [
        {}, {"patch": 5}, {"stride": 2}, {"fill": (0.2, 0.5, 0.7)}, {"mean": 0.3, "std": 0.5},
        {"method": "incremental"}, {"max_memory": 10**7}, {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]},
    ]  # fmt: skip
    for settings in variations:
        assert right(model, images, **settings)
    assert right(model, torch.rand(3, 3, 16, 20))
    assert right(model.double(), images.double())
    assert len(lowered) == 1 + 2


def test_one_model_takes_the_place_of_another(lowered: list[Graph]) -> None:
    first, images = zoo.residual().eval(), torch.rand(2, 3, 16, 16)
    second = copy.deepcopy(first)
    for model in (first, second, first):
        assert right(model, images)
    assert len(lowered) == 3


def test_it_goes_with_the_model(lowered: list[Graph]) -> None:
    model, images = zoo.residual().eval(), torch.rand(2, 3, 16, 16)
    occlusion_scores(model, images, **SETTINGS)
    weights = weakref.ref(lowered.pop())
    gone = weakref.ref(model)
    gc.collect()
    assert weights() is not None, "it is kept"
    del model
    gc.collect()
    assert gone() is None
    assert weights() is None


def test_methods_and_functions_are_known_again(lowered: list[Graph]) -> None:
    model, images = zoo.residual().eval(), torch.rand(2, 3, 16, 16)

    def function(x: Tensor) -> Tensor:
        return model(2 * x)

    for asked in (model.forward, function):
        for _ in range(2):
            assert right(asked, images)
    assert len(lowered) == 2


def test_what_no_trace_shows_is_seen_on_the_clean_images(lowered: list[Graph]) -> None:
    """A model that does something else without data: the replay is not believed."""

    class Sly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.odd = zoo.residual(), threading.Event()  # which nobody looks into

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x.flip(3)) * 2 if self.odd.is_set() and not x.is_meta else self.net(x)

    model, images = Sly().eval(), torch.rand(2, 3, 16, 16)
    assert right(model, images)
    model.odd.set()
    assert right(model, images)
    assert len(lowered) == 1


def test_passes_are_counted_the_same(lowered: list[Graph]) -> None:
    model, images = zoo.residual().eval(), torch.rand(3, 3, 16, 16)
    labels = model(images).argmax(1)
    attack = SDSGSM(model, steps=3)
    first, second = (attack.run(images, labels) for _ in range(2))
    assert len(lowered) == 1
    assert torch.equal(first.passes.forward, second.passes.forward)
    assert torch.equal(first.images, second.images)


def test_weights_are_compared_to_the_bit(lowered: list[Graph]) -> None:
    model, images = zoo.residual().eval(), torch.rand(2, 3, 16, 16)
    bits = model.head.weight.data.view(torch.int32)
    for expected in (1, 1, 2, 2, 3):
        if expected > len(lowered):
            bits[0, 0] += 1  # which no version counter notices
        occlusion_scores(model, images, **SETTINGS)
        assert len(lowered) == expected


def test_a_model_that_has_not_changed_is_not_traced_again(
    lowered: list[Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, images = zoo.residual().eval(), torch.rand(2, 3, 16, 16)
    expected = occlusion_scores(model, images, **SETTINGS)
    monkeypatch.setattr(replay, "trace", lambda *_: pytest.fail("traced again"))
    assert torch.equal(occlusion_scores(model, images, **SETTINGS), expected)
