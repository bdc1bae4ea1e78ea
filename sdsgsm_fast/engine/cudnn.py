"""cuDNN's fused convolutions: bias, sum and ReLU in the convolution's own kernel, on a GPU."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..common.numerics import rounding
from ..model.precision import uses_tf32, verdict_rounding
from .convolution import Convolution

LAYOUT = torch.channels_last

ENABLED = False
"""Off until a GPU has been seen to gain from them: PyTorch's users report cases in which they are far slower."""

_refused: set[Any] = set()
"""Kinds of convolutions for which cuDNN has no such kernel."""


def cudnn_runs(c: Convolution) -> bool:
    """Whether cuDNN's fused convolutions are there for a convolution that ends in a ReLU."""
    if not (ENABLED and c.relu and c.groups == 1 and c.weight.is_cuda and torch.backends.cudnn.enabled):
        return False
    return _agrees(c.weight.dtype, c.weight.device, uses_tf32(c.weight.device))


def fused(x: Tensor, c: Convolution, other: Tensor | None) -> Tensor | None:
    """relu(convolution(x) + bias + other) in one kernel; None where cuDNN refuses that kind of convolution.

    PyTorch reports a shortage of memory as a refusal, too: what is refused is tried apart, and the
    caller's separate kernels then say which it was.
    """
    shapes = (x.shape, c.weight.shape, c.stride, c.padding, c.dilation, other is None)
    kind = (shapes, x.dtype, x.device, uses_tf32(x.device))
    if kind in _refused:
        return None
    try:
        return _run(x, c, other)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # no engine for it: PyTorch's own convolution runs
        _refused.add(kind)
        return None


def _run(x: Tensor, c: Convolution, other: Tensor | None) -> Tensor:
    shape = (c.stride, c.padding, c.dilation, c.groups)
    if other is None:
        y: Tensor = torch.ops.aten.cudnn_convolution_relu(x, c.weight, c.bias, *shape)
        return y
    other = other.contiguous(memory_format=LAYOUT)
    y = torch.ops.aten.cudnn_convolution_add_relu(x, c.weight, other, 1.0, c.bias, *shape)
    return y


@cache
def _agrees(dtype: torch.dtype, device: torch.device, tf32: bool) -> bool:
    """Try them once: what they compute is compared with separate kernels."""
    weight = torch.linspace(-1, 1, 8 * 8 * 9, dtype=torch.float64).view(8, 8, 3, 3).to(device, dtype)
    x = torch.linspace(-1, 1, 8 * 25, dtype=torch.float64).view(1, 8, 5, 5).to(device, dtype)
    c = Convolution(weight.contiguous(memory_format=LAYOUT), weight[:, 0, 0, 0], (1, 1), (1, 1), (1, 1), 1, relu=True)
    x = x.contiguous(memory_format=LAYOUT)
    y = F.conv2d(x, c.weight, c.bias, c.stride, c.padding)
    share = verdict_rounding(dtype, device) if tf32 else rounding(dtype)
    poison = torch.full_like(y, torch.nan)  # in the memory that a result may get: nothing of it may show
    ones = torch.ones_like(y)
    del poison
    try:
        found = [_run(x, c, other) for other in (None, ones)]
    except Exception:  # an older PyTorch or cuDNN
        return False
    pairs = zip(found, (y.relu(), (y + 1).relu()), strict=True)
    return all(bool(((a - b).abs() <= share * y.abs().amax()).all()) for a, b in pairs)
