"""Arguments of the paste, and what it gives, worked out by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


SIZES = [
    (1, (1, 1), (1, 1), (1, 1)),
    (3, (7, 5), (3, 2), (5, 6)),
    (16, (9, 11), (4, 4), (6, 6)),
    (5, (6, 6), (6, 6), (10, 9)),
    (8, (12, 8), (5, 8), (12, 8)),
    (130, (8, 9), (2, 3), (4, 5)),
]


def integers(low: int, high: int, count: int) -> Tensor:
    return torch.randint(low, high, (count,), dtype=torch.int32)


def along(size: int, crop: int, tile: int, count: int) -> Tensor:
    """Tiles that begin up to two before the border or end beyond it; parts of the crop."""
    start = integers(-2, max(size - tile, 0) + 3, count)
    first = integers(0, size - crop + 1, count)
    length = (torch.rand(count) * (crop + 1)).int().clamp(0, crop)
    return torch.stack([start, first, first + length], 1)


def case(size: Any, dtype: torch.dtype, *, count: int = 23, crops: str = "each") -> dict[str, Any]:
    """Arguments of `ops.paste`; all values differ."""
    channels, map_size, crop_size, tile_size = size
    clean = torch.randn(3, channels, *map_size).to(dtype)
    pasted = torch.randn(1 if crops == "one" else count, channels, *crop_size).to(dtype)
    rows, cols = (along(*sizes, 4) for sizes in zip(map_size, crop_size, tile_size, strict=True))
    return {
        "clean": clean, "crops": None if crops == "none" else pasted,
        "image": integers(0, 3, count), "row": integers(0, 4, count), "col": integers(0, 4, count),
        "rows": rows, "cols": cols, "height": tile_size[0], "width": tile_size[1],
    }  # fmt: skip


def by_hand(c: dict[str, Any], pad: float) -> Tensor:
    """Value by value."""
    clean, crops = c["clean"], c["crops"]
    shape = (len(c["image"]), clean.shape[1], c["height"], c["width"])
    out = torch.full(shape, pad, dtype=clean.dtype)
    for n in range(len(out)):
        top, row_from, row_to = c["rows"][c["row"][n]].tolist()
        left, col_from, col_to = c["cols"][c["col"][n]].tolist()
        for i in range(c["height"]):
            for j in range(c["width"]):
                y, x = top + i, left + j
                if not (0 <= y < clean.shape[2] and 0 <= x < clean.shape[3]):
                    continue
                if crops is not None and row_from <= y < row_to and col_from <= x < col_to:
                    out[n, :, i, j] = crops[n % len(crops), :, y - row_from, x - col_from]
                else:
                    out[n, :, i, j] = clean[c["image"][n], :, y, x]
    return out
