"""An attack or a map leaves the model, the random state and its arguments as they were."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from nets import convnet
from states import Counting, same, state
from torch import Tensor, nn

from sdsgsm_fast import PGD, SDSGSM, Gradient, occlusion_map, ops

RUNS: dict[str, Callable[[nn.Module, Tensor, Tensor], object]] = {
    "sdsgsm": lambda m, x, y: SDSGSM(m, steps=3).run(x, y).metrics(),
    "pgd": lambda m, x, y: PGD(m, steps=3)(x, y),
    "gradient": lambda m, x, y: SDSGSM(m, steps=3, domain=Gradient())(x, y),
    "map": occlusion_map,
}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("limit", [10**9, 0, 1])
def test_the_model_is_left_as_it_was(name: str, limit: int) -> None:
    model, images = Counting(), torch.rand(4, 3, 16, 16)
    with torch.no_grad():
        labels = copy.deepcopy(model.net).eval()(images).argmax(1)
    model.limit = limit
    before, given = state(model), (images.clone(), labels.clone())
    if limit < 10**9:
        with pytest.raises(RuntimeError, match="the model broke"):
            RUNS[name](model, images, labels)
    else:
        RUNS[name](model, images, labels)
    assert same(state(model), before)
    assert same([images, labels], list(given))
    assert not images.requires_grad


def test_results_carry_no_graph_and_share_no_memory_with_the_input() -> None:
    model, images = convnet(), torch.rand(4, 3, 16, 16, requires_grad=True)
    result = SDSGSM(model, steps=2).run(images, torch.zeros(4, dtype=torch.int64))
    assert not result.adv.requires_grad
    assert result.adv.data_ptr() != images.data_ptr()
    assert images.grad is None


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_works_where_gradients_are_off(mode: Callable[[], object]) -> None:
    model, images = convnet(), torch.rand(4, 3, 16, 16)
    labels = torch.zeros(4, dtype=torch.int64)
    expected = SDSGSM(model, steps=3)(images, labels)
    with mode():
        found = SDSGSM(model, steps=3)(images.clone(), labels.clone())
    assert torch.equal(found, expected)


def test_autocast_around_the_call_changes_nothing() -> None:
    model, images = convnet(), torch.rand(4, 3, 16, 16)
    labels = torch.zeros(4, dtype=torch.int64)
    expected = SDSGSM(model, steps=3)(images, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = SDSGSM(model, steps=3)(images, labels)
    assert torch.equal(found, expected)


class InPlace(nn.Module):
    """A model whose first operation overwrites its input."""

    def __init__(self) -> None:
        super().__init__()
        self.net = convnet()

    def forward(self, x: Tensor) -> Tensor:
        x -= 0.5
        x *= 4
        return self.net(x)


def test_models_that_overwrite_their_input() -> None:
    model, images = InPlace(), torch.rand(4, 3, 16, 16)
    given = images.clone()
    labels = model(images.clone()).argmax(1)

    def tidy(x: Tensor) -> Tensor:
        return model(x * 1)

    for run in (
        lambda m: occlusion_map(m, images, patch=4),
        lambda m: SDSGSM(m, steps=4)(images, labels),
        lambda m: PGD(m, steps=4, seed=0)(images, labels),
        lambda m: SDSGSM(m, steps=4).run(images, labels).metrics().success_rate_8bit,
    ):
        found, expected = run(model), run(tidy)
        same = torch.equal if isinstance(found, Tensor) else float.__eq__
        assert same(found, expected)
        assert torch.equal(images, given)


def test_a_domain_that_overwrites_its_argument_gets_a_copy() -> None:
    model, images = convnet(), torch.rand(4, 3, 16, 16)
    given = images.clone()
    SDSGSM(model, steps=1, domain=lambda c, x, y: x.mul_(0.5).mean(1))(images, model(images).argmax(1))
    assert torch.equal(images, given)


def test_settings_that_require_grad_leave_no_graph() -> None:
    model, images = convnet(), torch.rand(4, 3, 16, 16)
    labels = model(images).argmax(1)
    wants = [torch.rand(4, 16, 16, requires_grad=True), torch.full((4,), 0.1, requires_grad=True)]
    result = PGD(model, domain=wants[0], eps=wants[1], steps=2).run(images, labels)
    assert not result.adv.requires_grad
    assert not result.domain.requires_grad
    learned = SDSGSM(model, steps=2, domain=lambda c, x, y: wants[0] * 1).run(images, labels)
    assert not learned.adv.requires_grad


def test_autograd_notices_an_update_in_place() -> None:
    for backend in ("reference", "native"):
        weight, adv = torch.rand(1, 3, 4, 4, requires_grad=True), torch.rand(1, 3, 4, 4)
        out = (weight * adv).sum()
        ops.update_(adv, adv.clone(), adv.clone(), None, eps=0.1, alpha=0.1, background=1.0,
                    backend=backend)  # fmt: skip
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.backward()


def test_expanded_tensors_are_not_updated_in_place() -> None:
    adv = torch.rand(1, 3, 4, 4).expand(2, -1, -1, -1)
    x = torch.rand(2, 3, 4, 4)
    with pytest.raises(ValueError, match="adv: an expanded tensor cannot be updated in place"):
        ops.update_(adv, x, x, None, eps=0.1, alpha=0.1, background=1.0)


def test_bound_methods_are_held_like_their_module() -> None:
    model = convnet(train_norm=True)
    images = torch.rand(4, 3, 16, 16)
    before = state(model)
    found = occlusion_map(model.forward, images)
    assert same(state(model), before)
    assert torch.equal(found, occlusion_map(model.eval(), images))


def test_buffers_that_appear_or_are_written_behind_the_back() -> None:
    class Sly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = convnet()
            self.register_buffer("count", torch.zeros(()))
            self.register_buffer("empty", None)

        def forward(self, x: Tensor) -> Tensor:
            self.count.data.add_(1)
            self.empty = torch.ones(2)
            self.register_buffer("new", torch.ones(3))
            return self.net(x)

    model = Sly()
    occlusion_map(model, torch.rand(2, 3, 16, 16))
    assert model.count == 0
    assert model.empty is None
    assert "new" not in model.state_dict()


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_scripted_and_frozen_modules() -> None:
    images = torch.rand(2, 3, 16, 16)
    traced = torch.jit.trace(convnet(), images)
    expected = occlusion_map(convnet(), images).shape
    for model in (traced, torch.jit.freeze(traced)):
        assert occlusion_map(model, images, max_memory=10**6).shape == expected
