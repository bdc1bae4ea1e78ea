"""`window_mean`: METHOD.md, equation 2."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...common import checks
from ...common.numerics import compute_dtype
from ...common.windows import Windows
from ..backends import choose
from .registry import grid, register

_SCHEMA = "(Tensor scores, int height, int width, int[] patch, int[] stride, str backend) -> Tensor"


def _windows_of(scores: Tensor, height: int, width: int, patch: Sequence[int], stride: Sequence[int]) -> Windows:
    windows = grid(height, width, patch, stride)
    checks.kernel_dtype("scores", scores.dtype)
    if tuple(scores.shape[1:]) not in ((windows.rows, windows.cols), (len(windows),)):
        raise ValueError(f"scores: expected shape (B, {windows.rows}, {windows.cols}), found {tuple(scores.shape)}")
    return windows


def _window_mean(
    scores: Tensor,
    height: int,
    width: int,
    patch: Sequence[int],
    stride: Sequence[int],
    backend: str,
) -> Tensor:
    """Kernel of `window_mean`."""
    windows = _windows_of(scores, height, width, patch, stride)
    given = scores.flatten(1).to(compute_dtype(scores)).contiguous()
    out = given.new_empty((len(scores), height, width))
    if out.numel():
        choose(backend, scores).window_mean(out, given, windows)
    return out.to(scores.dtype)


def _fake_window_mean(
    scores: Tensor, height: int, width: int, patch: Sequence[int], stride: Sequence[int],
    backend: str,
) -> Tensor:  # fmt: skip
    _windows_of(scores, height, width, patch, stride)
    return scores.new_empty((len(scores), height, width))


window_mean = register("window_mean", _SCHEMA, _window_mean, _fake_window_mean)
