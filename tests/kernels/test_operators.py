"""The operators inside PyTorch: schemas, fake kernels, tracing, autograd."""

from __future__ import annotations

import pytest
import torch
from steps import NUMBERS, STEP, passes, step
from torch import Tensor
from torch._subclasses import FakeTensorMode

from sdsgsm_fast import ops
from sdsgsm_fast.kernels import operators

SHAPE = (2, 3, 9, 7)


def given(*, last: bool = False) -> dict[str, Tensor]:
    layout = torch.channels_last if last else torch.contiguous_format
    images = torch.rand(SHAPE).contiguous(memory_format=layout)
    grad = torch.randn(SHAPE).contiguous(memory_format=layout)
    return {"adv": images.clone(), "images": images, "grad": grad, "domain": torch.rand(2, 9, 7)}


@pytest.mark.parametrize("momentum", [False, True])
@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("last", [False, True])
def test_opcheck_update(momentum: bool, each: bool, requires_grad: bool, last: bool, backend: str) -> None:
    t = given(last=last)
    t["images"].requires_grad_(requires_grad)
    settings = (torch.tensor([0.1, 0.2]),) * 3 if each else (None,) * 3
    kept = torch.randn_like(t["adv"]) if momentum else None
    active = torch.tensor([True, False]) if each else None
    arguments = (*t.values(), kept, active, *settings, NUMBERS, "mean_abs", backend)
    assert passes(torch.library.opcheck(operators.update, arguments))
    assert passes(torch.library.opcheck(operators.update_, arguments))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("last", [False, True])
def test_opcheck_occlude_and_window_mean(dtype: torch.dtype, last: bool, backend: str) -> None:
    images, zero = torch.rand(SHAPE), torch.zeros(1, dtype=torch.float64)
    arguments = (images, 1, 3, [4, 3], [4, 2], zero, zero, zero + 1, dtype, last, backend)
    assert passes(torch.library.opcheck(operators.occlude, arguments))
    scores = torch.rand(2, 6)
    arguments = (scores, 9, 7, [4, 4], [4, 4], backend)
    assert passes(torch.library.opcheck(operators.window_mean, arguments))


@pytest.mark.parametrize(("compiler", "batches"), [("aot_eager", (2, 5, 3)), ("inductor", (3,))])
def test_a_step_compiles_as_one_graph(compiler: str, batches: tuple[int, ...]) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend=compiler)
    for batch in batches:  # the second recompiles with a dynamic batch
        images, domain = torch.rand(batch, 3, 8, 8), torch.rand(batch, 8, 8)
        arguments = (images, domain, torch.randn(batch, 3, 8, 8), torch.rand(batch) / 5)
        eager_adv, compiled_adv = images.clone(), images.clone()
        expected = step(eager_adv, *arguments)
        for one, other in zip(compiled(compiled_adv, *arguments), expected, strict=True):
            assert torch.allclose(one, other, atol=1e-6)
        assert torch.allclose(compiled_adv, eager_adv, atol=1e-6)
        assert not torch.equal(compiled_adv, images)


@pytest.mark.parametrize("last", [False, True])
def test_fake_results_have_the_real_layout(last: bool) -> None:
    t = given(last=last)
    real = ops.update(*t.values(), decay=1.0, **STEP)
    copies = ops.occlude(t["images"], 0, 2, patch=4, channels_last=last, dtype=torch.float16)
    with FakeTensorMode() as mode:
        fake_t = {k: mode.from_tensor(v) for k, v in t.items()}
        fake = ops.update(*fake_t.values(), decay=1.0, **STEP)
        fake_copies = ops.occlude(fake_t["images"], 0, 2, patch=4, channels_last=last, dtype=torch.float16)
    for one, other in [*zip(fake, real, strict=True), (fake_copies, copies)]:
        assert one is not None
        assert other is not None
        assert (one.shape, one.stride(), one.dtype) == (other.shape, other.stride(), other.dtype)


def test_meta_tensors_give_shapes() -> None:
    x = torch.empty(2, 3, 8, 8, device="meta")
    assert ops.occlude(x, 0, 4, patch=4).shape == (8, 3, 8, 8)
    assert ops.window_mean(x[:, 0, :2, :2], 8, 8, patch=4).shape == (2, 8, 8)
    with pytest.raises(ValueError, match="count: expected first"):
        ops.occlude(x, 0, 5, patch=4)


def test_results_are_constants_to_autograd() -> None:
    t = given()
    for tensor in t.values():
        tensor.requires_grad_()
    adv, momentum = ops.update(*t.values(), decay=1.0, **STEP)
    assert momentum is not None
    assert not adv.requires_grad
    assert not momentum.requires_grad
    assert not ops.occlude(t["images"], 0, 1, patch=4).requires_grad
    version = t["adv"]._version
    ops.update_(*t.values(), **STEP)
    assert t["adv"].is_leaf
    assert t["adv"]._version == version + 1
    with pytest.raises(ValueError, match="adv: part of a graph"):
        ops.update_(t["adv"] * 2, t["images"], t["grad"], None, **STEP)
    ragged = torch.rand(2, 3, 9, 14)[..., ::2].requires_grad_()
    ops.update_(ragged, t["images"], t["grad"], None, **STEP)
    assert ragged.is_leaf


def test_views_with_pending_negation_are_resolved() -> None:
    t = given()
    expected, _ = ops.update(*t.values(), **STEP)
    lazy = torch._neg_view(-t["grad"])
    assert lazy.is_neg()
    found, _ = ops.update(t["adv"], t["images"], lazy, t["domain"], **STEP)
    assert torch.equal(found, expected)


def test_the_operator_itself_refuses_what_would_be_read_wrongly() -> None:
    """The kernels take addresses: a caller who goes round `ops` is checked, too."""
    t = given()
    rest = (None, None, None, None, None, NUMBERS, "mean_abs", "auto")
    for name, wrong in (
        ("grad", torch.randn(2, 3, 9, 6)),
        ("grad", torch.ones(SHAPE, dtype=torch.int32)),
        ("domain", torch.rand(1, 9, 7)),
        ("adv", torch.rand(SHAPE).double()),
    ):
        with pytest.raises((ValueError, TypeError), match=f"{name}: expected"):
            operators.update(*{**t, name: wrong}.values(), *rest)
