"""`occlude`: the zero-out of METHOD.md, section 1."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...common import checks
from ...common.windows import Windows
from ..backends import choose
from ..calls import Occlude
from .registry import empty, grid, register

_SCHEMA = (
    "(Tensor images, int first, int count, int[] patch, int[] stride, Tensor fill, "
    "Tensor mean, Tensor std, ScalarType dtype, bool channels_last, str backend) -> Tensor"
)


def _occlude_shape(images: Tensor, windows: Windows, first: int, count: int) -> tuple[int, ...]:
    checks.image_batch("images", images)
    checks.kernel_dtype("images", images.dtype)
    if first < 0 or count < 0 or first + count > len(windows):
        raise ValueError(f"count: expected first + count ≤ {len(windows)}, found {first + count}")
    return (len(images) * count, *images.shape[1:])


def _occlude(
    images: Tensor,
    first: int,
    count: int,
    patch: Sequence[int],
    stride: Sequence[int],
    fill: Tensor,
    mean: Tensor,
    std: Tensor,
    dtype: torch.dtype,
    channels_last: bool,
    backend: str,
) -> Tensor:
    """Kernel of `occlude`."""
    windows = grid(images.shape[2], images.shape[3], patch, stride)
    shape = _occlude_shape(images, windows, first, count)
    checks.kernel_dtype("dtype", dtype)
    out = empty(images, shape, dtype, channels_last)
    channels = shape[1]
    call = Occlude(
        images.contiguous(), windows, first, count,
        fill=checks.per_channel("fill", fill, channels),
        mean=checks.per_channel("mean", mean, channels),
        std=checks.scale(std, channels),
    )  # fmt: skip
    if out.numel():
        choose(backend, images).occlude(out, call)
    return out


def _fake_occlude(
    images: Tensor, first: int, count: int, patch: Sequence[int], stride: Sequence[int],
    fill: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype, channels_last: bool, backend: str,
) -> Tensor:  # fmt: skip
    windows = grid(images.shape[2], images.shape[3], patch, stride)
    return empty(images, _occlude_shape(images, windows, first, count), dtype, channels_last)


occlude = register("occlude", _SCHEMA, _occlude, _fake_occlude)
