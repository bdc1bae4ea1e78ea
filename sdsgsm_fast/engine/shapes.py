"""What operations return for tensors without data.

PyTorch finds out in Python: up to a millisecond an operation, and the first one of a process loads
torch.compile and SymPy, which takes one or two seconds. The common operations are known here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .leaves import leaves, mapped

aten = torch.ops.aten


def returned(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Tensors on the meta device as `func` returns them for `args` and `kwargs`, which hold such.

    Shapes and dtypes are PyTorch's; strides are, too, for operands that lie dense in memory and alike.
    """
    known = KNOWN.get(func)
    if known is None and torch.Tag.pointwise in func.tags and kwargs.keys().isdisjoint(PLACED):
        known = _in_place if func._schema.is_mutable else _pointwise
    found = None if known is None else known(func, *args, **kwargs)
    return func(*args, **kwargs) if found is None else found


PLACED = ("device", "layout", "memory_format")
"""Arguments that say where the result is to lie."""


def _small(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The result for operands of one value each: its dtype is that of the whole result."""

    def small(leaf: Any) -> Any:
        return torch.ones((1,) * leaf.ndim, dtype=leaf.dtype) if isinstance(leaf, Tensor) else leaf

    with torch.no_grad():
        found: Tensor = func(*mapped(small, args), **mapped(small, kwargs))
    return found


def _pointwise(func: Any, *args: Any, **kwargs: Any) -> Tensor | None:
    if len(func._schema.returns) != 1:
        return None
    operands = [leaf for leaf in leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    small = _small(func, args, kwargs)
    shape = np.broadcast_shapes(*(operand.shape for operand in operands))
    like = next((operand for operand in operands if operand.shape == shape), None)
    if like is None:
        return torch.empty(shape, dtype=small.dtype, device="meta")
    return _alike(like, small.dtype)


def _alike(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor of the same shape, in the same order in memory where that has no gaps."""
    if aten.is_non_overlapping_and_dense.default(x):
        return torch.empty_strided(x.shape, x.stride(), dtype=dtype, device="meta")
    return torch.empty(x.shape, dtype=dtype, device="meta")


def _in_place(func: Any, written: Any, *args: Any, **kwargs: Any) -> Tensor | None:
    operands = [leaf for leaf in leaves((written, args, kwargs)) if isinstance(leaf, Tensor)]
    if func._schema.arguments[0].alias_info is None or not isinstance(written, Tensor):  # writes another
        return None
    alike = written.is_floating_point() and all(operand.dtype == written.dtype for operand in operands)
    fits = np.broadcast_shapes(*(operand.shape for operand in operands)) == written.shape
    return written if alike and fits else None


def _convolution(
    func: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int],
    dilation: list[int], transposed: bool, *rest: Any,
) -> Tensor | None:  # fmt: skip
    if transposed or x.ndim != 4:
        return None
    size = _slid(x, weight.shape[2:], stride, padding, dilation)
    return _images(x, len(weight), size, channels_last=_is_channels_last(x) or _is_channels_last(weight))


def _is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _slid(x: Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any) -> list[int]:
    """Places of a kernel along height and width; lists of one number are for both."""
    pairs = [list(p) * (3 - len(p)) for p in (kernel, stride, padding, dilation)]
    along = zip(x.shape[-2:], *pairs, strict=True)
    return [(n + 2 * pad - step * (k - 1) - 1) // jump + 1 for n, k, jump, pad, step in along]


def _max_pool(
    func: Any, x: Tensor, kernel: list[int], stride: list[int] | tuple[()] = (), padding: list[int] | tuple[int] = (0,),
    dilation: list[int] | tuple[int] = (1,), ceil_mode: bool = False,
) -> tuple[Tensor, Tensor] | None:  # fmt: skip
    if ceil_mode or x.ndim != 4:
        return None
    found = _pooled(x, _slid(x, kernel, stride or kernel, padding, dilation))
    return found, _alike(found, torch.int64)


def _average_pool(
    func: Any, x: Tensor, kernel: list[int], stride: list[int] | tuple[()] = (), padding: list[int] | tuple[int] = (0,),
    ceil_mode: bool = False, *rest: Any,
) -> Tensor | None:  # fmt: skip
    return None if ceil_mode or x.ndim != 4 else _pooled(x, _slid(x, kernel, stride or kernel, padding, (1,)))


def _adaptive_pool(func: Any, x: Tensor, size: list[int]) -> Tensor | None:
    return _pooled(x, size) if x.ndim == 4 else None


def _pooled(x: Tensor, size: list[int]) -> Tensor:
    return _images(x, x.shape[1], size, channels_last=_is_channels_last(x))


def _images(x: Tensor, channels: int, size: list[int], *, channels_last: bool) -> Tensor:
    """As many images as `x` has, of other channels and another size."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(len(x), channels, *size, dtype=x.dtype, device="meta", memory_format=layout)


def _mean(func: Any, x: Tensor, dims: list[int] | None, keepdim: bool = False, **kwargs: Any) -> Tensor | None:
    if not dims or kwargs or not x.is_contiguous():
        return None
    reduced = {d % x.ndim for d in dims}
    shape = [1 if d in reduced else n for d, n in enumerate(x.shape) if keepdim or d not in reduced]
    return x.new_empty(shape)


def _cat(func: Any, tensors: list[Tensor], dim: int = 0) -> Tensor | None:
    first = tensors[0]
    if any(t.ndim != first.ndim or t.dtype != first.dtype for t in tensors):
        return None
    if first.ndim > 3 and not all(t.is_contiguous() for t in tensors):  # others may decide how it lies
        return None
    shape = list(first.shape)
    shape[dim] = sum(t.shape[dim] for t in tensors)
    return first.new_empty(shape)


def _softmax(func: Any, x: Tensor, dim: int, half_to_float: bool) -> Tensor | None:
    return None if half_to_float else x.new_empty(x.shape)


def _product(func: Any, a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty((*a.shape[:-1], b.shape[-1]))


def _addmm(func: Any, bias: Tensor, x: Tensor, matrix: Tensor, **scales: Any) -> Tensor:
    return x.new_empty(len(x), matrix.shape[1])


def _batch_norm(func: Any, x: Tensor, *arguments: Any) -> Any:
    training = arguments[4]
    return None if training else (_alike(x, x.dtype), x.new_empty(0), x.new_empty(0))


def _layer_norm(func: Any, x: Tensor, *arguments: Any) -> Any:
    return x.new_empty(x.shape), x.new_empty(0), x.new_empty(0)


KNOWN: dict[Any, Callable[..., Any]] = {
    aten.convolution.default: _convolution,
    aten.max_pool2d_with_indices.default: _max_pool,
    aten.avg_pool2d.default: _average_pool,
    aten._adaptive_avg_pool2d.default: _adaptive_pool,
    aten.mean.dim: _mean,
    aten.cat.default: _cat,
    aten._softmax.default: _softmax,
    aten.mm.default: _product,
    aten.bmm.default: _product,
    aten.addmm.default: _addmm,
    aten.native_batch_norm.default: _batch_norm,
    aten.native_layer_norm.default: _layer_norm,
}
"""What common operations return, None where that is not for them to say."""
