"""`paste`: tiles of clean maps with crops in their places."""

from __future__ import annotations

import torch
from torch import Tensor

from ...common import checks
from ..backends import choose
from ..calls import Paste
from .registry import empty, register

_SCHEMA = (
    "(Tensor clean, Tensor? crops, Tensor image, Tensor row, Tensor col, Tensor rows, "
    "Tensor cols, int height, int width, float pad, str backend) -> Tensor"
)


def _check_paste(
    clean: Tensor, crops: Tensor | None, image: Tensor, row: Tensor, col: Tensor, rows: Tensor,
    cols: Tensor, height: int, width: int,
) -> tuple[int, ...]:  # fmt: skip
    """Shape of the tiles. The indices' values are not checked: they would cost a device's wait."""
    checks.image_batch("clean", clean)
    checks.kernel_dtype("clean", clean.dtype)
    count = len(image)
    if crops is not None:
        checks.image_batch("crops", crops)
        if len(crops) not in (1, count) or crops.shape[1] != clean.shape[1]:
            raise ValueError(
                f"crops: expected shape (1 or {count}, {clean.shape[1]}, h, w), found {tuple(crops.shape)}"
            )
        if crops.dtype != clean.dtype or crops.device != clean.device:
            raise ValueError(
                f"crops: expected {clean.dtype} on {clean.device} as clean, found {crops.dtype} on {crops.device}"
            )
    for name, tensor, shape in (
        ("image", image, (count,)), ("row", row, (count,)), ("col", col, (count,)),
        ("rows", rows, (len(rows), 3)), ("cols", cols, (len(cols), 3)),
    ):  # fmt: skip
        if tensor.dtype != torch.int32 or tuple(tensor.shape) != shape:
            raise ValueError(
                f"{name}: expected int32 of shape {shape}, found {tensor.dtype} of shape {tuple(tensor.shape)}"
            )
        if tensor.device != clean.device:
            raise ValueError(f"{name}: expected device {clean.device}, found {tensor.device}")
    if height < 1 or width < 1:
        raise ValueError(f"height, width: expected at least 1, found {height}, {width}")
    return (count, clean.shape[1], height, width)


def _paste(
    clean: Tensor, crops: Tensor | None, image: Tensor, row: Tensor, col: Tensor, rows: Tensor,
    cols: Tensor, height: int, width: int, pad: float, backend: str,
) -> Tensor:  # fmt: skip
    """Kernel of `paste`."""
    shape = _check_paste(clean, crops, image, row, col, rows, cols, height, width)
    out = empty(clean, shape, clean.dtype, last=True)
    if out.numel():
        call = Paste(clean, crops, image, row, col, rows, cols, height, width, pad)
        choose(backend, clean).paste(out, call.dense())
    return out


def _fake_paste(
    clean: Tensor, crops: Tensor | None, image: Tensor, row: Tensor, col: Tensor, rows: Tensor,
    cols: Tensor, height: int, width: int, pad: float, backend: str,
) -> Tensor:  # fmt: skip
    shape = _check_paste(clean, crops, image, row, col, rows, cols, height, width)
    return empty(clean, shape, clean.dtype, last=True)


paste = register("paste", _SCHEMA, _paste, _fake_paste)
