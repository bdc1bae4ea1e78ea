"""A model in a delicate state, and what to compare of it."""

from __future__ import annotations

import torch
from nets import convnet
from torch import Tensor, nn


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
