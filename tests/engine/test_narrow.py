"""Tokens that nobody reads are not computed, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import zoo
from torch import Tensor, nn

from sdsgsm_fast.engine import lower as lowering
from sdsgsm_fast.engine.lower import lower
from sdsgsm_fast.engine.narrow import narrowed
from sdsgsm_fast.engine.network import Network
from sdsgsm_fast.engine.trace import Graph, trace
from sdsgsm_fast.model.classifier import Classifier

Body = Callable[["Tokens", Tensor], Tensor]


class Tokens(nn.Module):
    """Nine tokens of twelve numbers, what is done with them, and a head."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.body, self.embed = body, nn.Conv2d(3, 12, 4, 4)
        self.a, self.b, self.c = nn.Linear(12, 20), nn.Linear(20, 12), nn.Linear(12, 12, bias=False)
        self.norm, self.across = nn.LayerNorm(12), nn.LayerNorm((9, 12))
        self.place = nn.Parameter(torch.randn(1, 9, 12))
        self.scale = nn.Parameter(torch.randn(9, 1))
        self.head = nn.Linear(12, 5)

    def mlp(self, x: Tensor) -> Tensor:
        return self.b(F.gelu(self.a(x)))

    def heads(self, x: Tensor) -> Tensor:
        return x.view(len(x), 9, 3, 4).transpose(1, 2)

    def attend(self, x: Tensor, **settings: bool) -> Tensor:
        q, k = self.heads(self.c(x)), self.heads(x)
        return F.scaled_dot_product_attention(q, k, k, **settings).transpose(1, 2).flatten(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self, self.embed(x).flatten(2).transpose(1, 2)))


def block(m: Tokens, x: Tensor) -> Tensor:
    x = x + m.c(m.attend(m.norm(x)))
    return m.norm(x + m.mlp(m.norm(x)))


def permuted(m: Tokens, x: Tensor) -> Tensor:
    """Queries that come with keys and values, as in timm."""
    q, k, v = torch.cat([x, m.c(x), x], 2).view(len(x), 9, 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(q, k, v).permute(0, 2, 1, 3).reshape(len(x), 9, 12)


GAINS: dict[str, Body] = {
    "first": lambda m, x: block(m, x)[:, 0],
    "last": lambda m, x: block(m, x)[:, -1],
    "two blocks": lambda m, x: block(m, block(m, x))[:, 4],
    "constants": lambda m, x: (m.scale * m.mlp(x + m.place) * 2 - m.place)[:, 3],
    "read whole as well": lambda m, x: m.mlp(block(m, x))[:, 2] + block(m, x).mean(1),
    "read twice": lambda m, x: (lambda y: y[:, 1] * y[:, 1].sigmoid())(m.mlp(x)),
    "permuted": lambda m, x: m.mlp(permuted(m, x))[:, 5],
    "by slices": lambda m, x: m.mlp(x)[:, 6, :],
    "not dense": lambda m, x: m.b(F.relu(m.a(x.transpose(1, 2).contiguous().transpose(1, 2))))[:, 8],
    "rows apart": lambda m, x: m.mlp(x.reshape(-1, 12)).view(len(x), 9, 12)[:, 7],
}
LEAVES: dict[str, Body] = {
    "constant queries": lambda m, x: F.scaled_dot_product_attention(m.place[:, :4].expand(len(x), -1, -1), m.c(x), x)[
        :, 2
    ],
    "constant queries in heads": lambda m, x: (
        F.scaled_dot_product_attention(m.heads(m.place.repeat(len(x), 1, 1)), m.heads(m.c(x)), m.heads(x))
        .transpose(1, 2)
        .flatten(2)[:, 2]
    ),
    "two tokens": lambda m, x: (lambda y: y[:, 0] + y[:, 1])(m.mlp(x)),
    "norm over tokens": lambda m, x: m.across(m.mlp(x))[:, 0],
    "causal": lambda m, x: m.attend(x, is_causal=True)[:, 0],
    "mean": lambda m, x: m.mlp(x).mean(1),
    "softmax over tokens": lambda m, x: m.mlp(x).softmax(1)[:, 0],
    "other rows": lambda m, x: m.mlp(x).view(len(x), 12, 9).transpose(1, 2)[:, 0],
}


def lowered(net: nn.Module, images: Tensor, dtype: torch.dtype) -> Network:
    return lower(trace(Classifier(net), images), dtype, images.device, "auto")


@pytest.mark.parametrize("name", GAINS | LEAVES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_logits_stay(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    net, images = (
        Tokens((GAINS | LEAVES)[name]).eval().requires_grad_(False),
        torch.rand(5, 3, 12, 12),
    )
    network = lowered(net, images, dtype)
    monkeypatch.setattr(lowering, "narrowed", lambda graph: graph)
    whole = lowered(net, images, dtype)
    for count in (1, 5):
        leaf = images[:count].clone().requires_grad_()
        logits = network.evaluate(leaf, {network.output})[network.output]
        near = 1e-5 if dtype == torch.float32 else 0.05
        assert torch.allclose(logits, net(images[:count]), atol=near)
        (grad,) = torch.autograd.grad(logits.sum(), leaf)
        again = images[:count].clone().requires_grad_()
        other = whole.evaluate(again, {whole.output})[whole.output]
        (expected,) = torch.autograd.grad(other.sum(), again)
        assert float((grad - expected).norm() / expected.norm()) < (1e-5 if near < 0.01 else 0.05)
        assert float(expected.norm()) > 0.01
    if name in GAINS:
        assert network.work < 0.8 * whole.work
    else:
        assert network.work > 0.95 * whole.work


@pytest.mark.parametrize("kind", zoo.TRANSFORMERS)
def test_shapes_are_what_the_operations_return(kind: str) -> None:
    net, images = zoo.Transformer(kind).eval().requires_grad_(False), torch.rand(4, 3, 20, 24)
    _check_shapes(narrowed(trace(Classifier(net), images)), images)


@pytest.mark.parametrize("name", GAINS)
def test_shapes_of_what_is_left(name: str) -> None:
    net, images = Tokens(GAINS[name]).eval().requires_grad_(False), torch.rand(4, 3, 12, 12)
    graph = trace(Classifier(net), images)
    less = narrowed(graph)
    assert less is not graph
    _check_shapes(less, images)


def _check_shapes(graph: Graph, images: Tensor) -> None:
    """Run a graph as the lowering does, step by step."""
    network = lower(graph, torch.float32, images.device, "reference")
    found = network.run(images, set(range(len(network.steps))))
    sizes = {k: v.numel() // len(images) for k, v in found.items() if isinstance(v, Tensor)}
    for k, step in enumerate(network.steps):
        if step.elements and k in sizes and step.constant is None:
            assert step.elements == sizes[k], step.name
