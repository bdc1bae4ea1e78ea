"""The attention kernel against softmax in double, for every instruction set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sdsgsm_fast import _native_cpu
from sdsgsm_fast.engine import attention
from sdsgsm_fast.engine.attention import Attention
from sdsgsm_fast.kernels import native

CASES = [  # batch, heads, queries, keys, values of a query, values of a value
    (1, 1, 1, 1, 1, 1), (2, 3, 7, 5, 4, 4), (1, 2, 6, 16, 16, 16), (3, 1, 13, 65, 64, 64),
    (2, 2, 65, 65, 32, 48), (1, 3, 50, 50, 33, 31), (2, 1, 12, 131, 3, 129), (1, 1, 5, 300, 80, 7),
]  # fmt: skip
NEAR = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.fixture(params=_native_cpu.isas(), autouse=True)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _native_cpu.isa()
    _native_cpu.use_isa(request.param)
    yield request.param
    _native_cpu.use_isa(before)


@pytest.fixture(params=NEAR, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    found: torch.dtype = request.param
    return found


def case(number: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    batch, heads, queries, keys, size, width = CASES[number]
    shapes = ((queries, size), (keys, size), (keys, width))
    q, k, v = (torch.randn(batch, heads, *shape).to(dtype) for shape in shapes)
    return q, k, v


def by_softmax(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    q, k, v = q.double(), k.double(), v.double()
    return (scale * q @ k.transpose(-1, -2)).softmax(-1) @ v


def by_kernel(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """(B, heads, N, V), from between canaries."""
    batch, heads, queries, _ = q.shape
    canary = 12352.0
    whole = torch.full((batch * heads * queries * v.shape[3] + 128,), canary, dtype=q.dtype)
    out = whole[64:-64].view(batch, queries, heads, v.shape[3])
    native.attention(out, q, k, v, scale)
    assert torch.all(whole[:64] == canary)
    assert torch.all(whole[-64:] == canary)
    return out.transpose(1, 2)


@pytest.mark.parametrize("number", range(len(CASES)))
@pytest.mark.parametrize("scale", [0.0, 0.125, 3.0])
def test_agrees_with_softmax(number: int, scale: float, dtype: torch.dtype) -> None:
    q, k, v = case(number, dtype)
    found, expected = by_kernel(q, k, v, scale), by_softmax(q, k, v, scale)
    largest = scale * float((q.double() @ k.double().transpose(-1, -2)).abs().max())
    assert float((found - expected).abs().max()) < NEAR[dtype] * max(1, largest / 8)


def test_tokens_may_lie_anywhere(dtype: torch.dtype) -> None:
    packed = torch.randn(2, 31, 3, 4, 24).to(dtype)  # as one product gives all three
    q, k, v = packed.permute(2, 0, 3, 1, 4)
    expected = by_kernel(q.contiguous(), k.contiguous(), v.contiguous(), 0.3)
    assert torch.equal(by_kernel(q, k, v, 0.3), expected)
    one = k[:1, :1].expand(2, 4, 31, 24)  # the same keys for all, by strides of zero
    assert torch.equal(by_kernel(q, one, v, 0.3), by_kernel(q, one.contiguous(), v, 0.3))


def test_large_logits_do_not_overflow(dtype: torch.dtype) -> None:
    q, k, v = case(3, dtype)
    found = by_kernel(1e4 * q, 1e4 * k, v, 1.0)
    best = (q.double() @ k.double().transpose(-1, -2)).argmax(-1)
    expected = v.gather(2, best[..., None].expand(*best.shape, v.shape[3]))
    assert torch.equal(found, expected)


def test_what_is_not_finite_reaches_its_own_queries_alone(dtype: torch.dtype) -> None:
    q, k, v = case(3, dtype)
    q[0, 0, 4, 7], q[1, 0, 12, 0] = torch.nan, torch.inf
    found, expected = by_kernel(q, k, v, 1.0), F.scaled_dot_product_attention(q, k, v, scale=1.0)
    assert torch.equal(found.isfinite(), expected.isfinite())
    assert not found[0, 0, 4].isfinite().any()
    assert found[2].isfinite().all()
    k[2, 0, 64, 3] = torch.nan
    assert by_kernel(q, k, v, 1.0)[2].isnan().all()


def test_an_image_does_not_depend_on_its_batch_nor_on_the_threads(dtype: torch.dtype) -> None:
    q, k, v = (torch.randn(9, 4, 70, 40).to(dtype) for _ in range(3))
    together = by_kernel(q, k, v, 0.2)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(by_kernel(q, k, v, 0.2), together)
    finally:
        torch.set_num_threads(threads)
    for i in (0, 5, 8):
        alone = by_kernel(q[i : i + 1], k[i : i + 1], v[i : i + 1], 0.2)
        assert torch.equal(alone[0], together[i])


def tokens(*shape: int) -> Tensor:
    return torch.randn(shape)


PLAIN: dict[str, tuple[tuple[Tensor, Tensor, Tensor], dict[str, Any]]] = {
    "default scale": ((tokens(2, 3, 9, 8), tokens(2, 3, 11, 8), tokens(2, 3, 11, 6)), {}),
    "own scale": ((tokens(1, 2, 6, 5),) * 3, {"scale": 0.7}),
    "values apart": ((tokens(1, 2, 8, 9).transpose(2, 3),) * 3, {}),
}
OTHERS: dict[str, tuple[tuple[Tensor, Tensor, Tensor], dict[str, Any]]] = {
    "causal": ((tokens(2, 3, 9, 8),) * 3, {"is_causal": True}),
    "mask": ((tokens(1, 1, 9, 8),) * 3, {"attn_mask": torch.eye(9, dtype=torch.bool)}),
    "bias": ((tokens(1, 1, 9, 8),) * 3, {"attn_mask": tokens(9, 9)}),
    "without heads": ((tokens(2, 9, 8),) * 3, {}),
    "few queries": ((tokens(1, 1, 2, 8), tokens(1, 1, 9, 8), tokens(1, 1, 9, 8)), {}),
    "shared heads": (
        (tokens(1, 4, 9, 8), tokens(1, 2, 9, 8), tokens(1, 2, 9, 8)),
        {"enable_gqa": True},
    ),
    "broadcast": ((tokens(2, 1, 9, 8), tokens(1, 3, 9, 8), tokens(1, 3, 9, 8)), {}),
    "double": ((tokens(1, 1, 9, 8).double(),) * 3, {}),
    "no keys": ((tokens(1, 1, 9, 8), tokens(1, 1, 0, 8), tokens(1, 1, 0, 8)), {}),
}


@pytest.mark.parametrize("kind", [*PLAIN, *OTHERS])
def test_takes_the_arguments_of_pytorchs(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    run = native.attention
    monkeypatch.setattr(native, "attention", lambda *args: (calls.append(1), run(*args)))
    inputs, settings = (PLAIN | OTHERS)[kind]
    expected = F.scaled_dot_product_attention(*inputs, **settings)
    for backend in ("auto", "native", "reference"):
        calls.clear()
        found = Attention(backend)(*inputs, **settings)
        assert found.shape == expected.shape
        assert torch.allclose(found, expected, atol=1e-5)
        assert bool(calls) == (kind in PLAIN and backend != "reference")


def test_too_many_keys_are_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "LONGEST", 8)
    monkeypatch.delattr(native, "attention")
    x = tokens(1, 1, 9, 4)
    assert torch.equal(Attention("auto")(x, x, x), F.scaled_dot_product_attention(x, x, x))


@pytest.mark.parametrize("amx", [False, True])
def test_bfloat16_gives_bfloat16(amx: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the kernel, or with AMX by PyTorch; gradients always come from PyTorch."""
    monkeypatch.setattr(attention, "has_amx", lambda: amx)
    x = tokens(2, 2, 9, 16).requires_grad_()
    plain = F.scaled_dot_product_attention(x, x, x)
    (expected,) = torch.autograd.grad(plain.sum(), x)
    run, brief = Attention("auto"), x.bfloat16()
    found = run(brief, brief, brief)
    (grad,) = torch.autograd.grad(found.float().sum(), x)
    with torch.no_grad():
        again = run(brief, brief, brief)
    assert found.dtype == again.dtype == torch.bfloat16
    assert torch.allclose(found.float(), plain, atol=0.05)
    assert torch.allclose(again.float(), plain, atol=0.05)
    assert torch.allclose(grad, expected, atol=0.1)


@pytest.mark.parametrize("keys", [64, 65, 196, 1024, 4096])
def test_alike_tokens_do_not_add_up_errors(keys: int) -> None:
    """Where every addition rounds the same way, as in a uniform part of an image."""
    q, k = torch.zeros(1, 1, 6, 64), torch.randn(1, 1, keys, 64)
    v = torch.linspace(0.5, 1.5, 160).expand(1, 1, keys, 160)
    assert float((by_kernel(q, k, v, 1.0) / v[:, :, :1] - 1).abs().max()) < 3e-6


def test_rounding_of_long_sums() -> None:
    q, k, v = (torch.randn(1, 1, n, 64) for n in (6, 4096, 4096))
    found, expected = by_kernel(q, k, v, 1 / 8), by_softmax(q, k, v, 1 / 8)
    assert float((found - expected).abs().max()) < 2e-6


@pytest.mark.parametrize("keys", [9, 16, 20])
def test_logits_beyond_every_number(keys: int) -> None:
    """Softmax of −∞ alone is not a number; of +∞ neither, as in PyTorch's."""
    x = torch.full((1, 1, keys, 4), 1e30)
    assert by_kernel(-x, x, x, 1.0).isnan().all()
    assert by_kernel(x, x, x, 1.0).isnan().all()
