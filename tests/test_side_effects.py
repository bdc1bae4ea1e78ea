"""An attack or a map leaves the model, the random state and its arguments as they were."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from nets import convnet
from torch import Tensor, nn

from sdsgsm_fast import PGD, SDSGSM, Gradient, occlusion_map


class Counting(nn.Module):
    """A model in a delicate state: train mode, a frozen norm, preset .grad, a counting buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = convnet(train_norm=True)
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("replaced", torch.zeros(3))
        self.limit = 10**9
        self.net[1].eval()
        self.net[0].weight.requires_grad_(False)
        for p in self.net.parameters():
            p.grad = torch.full_like(p, 7.0) if p.requires_grad else None

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        assert not any(p.requires_grad for p in self.parameters())
        self.calls += 1
        self.replaced = self.replaced + 1
        if self.calls > self.limit:
            raise RuntimeError("the model broke")
        torch.rand(1)  # a model that draws random numbers
        return self.net(self.dropout(x))


def state(model: nn.Module) -> dict[str, object]:
    return {
        "modes": [m.training for m in model.modules()],
        "wanted": [p.requires_grad for p in model.parameters()],
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "values": [v.clone() for v in model.state_dict().values()],
        "buffers": [id(b) for b in model.buffers()],
        "random": torch.get_rng_state(),
    }


def same(a: object, b: object) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b)
    return a == b


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
