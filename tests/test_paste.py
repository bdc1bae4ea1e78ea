"""The paste of incremental occlusion: every backend copies the bits that the reference copies."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from test_operators import passes
from torch import Tensor

from sdsgsm_fast import ops
from sdsgsm_fast.kernels import native, operators
from sdsgsm_fast.kernels.calls import Paste

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
# channels; map; crop; tile
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


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("crops", ["each", "one", "none"])
def test_by_hand(size: Any, crops: str, backend: str) -> None:
    for pad in (0.0, -math.inf, 0.7):
        c = case(size, torch.float32, crops=crops)
        found = ops.paste(**c, pad=pad, backend=backend)
        assert torch.equal(found, by_hand(c, pad))
        assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(size: Any, dtype: torch.dtype, backend: str) -> None:
    c = case(size, dtype)
    if dtype == torch.float64 and backend == "triton":
        with pytest.raises(ValueError, match=r"'triton' does not take torch\.float64"):
            ops.paste(**c, backend=backend)
        return
    assert torch.equal(ops.paste(**c, pad=-0.3125, backend=backend), by_hand(c, -0.3125))


def test_any_layout(backend: str) -> None:
    c = case(SIZES[2], torch.float32)
    expected = by_hand(c, 0.0)
    c["clean"] = torch.cat([c["clean"]] * 2, 1).contiguous(memory_format=torch.channels_last)[:, :16]
    c["crops"] = torch.cat([c["crops"]] * 2, 3)[..., : c["crops"].shape[3]]
    c["image"] = torch.stack([c["image"]] * 2, 1)[:, 0]
    assert torch.equal(ops.paste(**c, backend=backend), expected)


def test_nothing_is_written_around_the_tiles() -> None:
    canary = 12345.0
    for size in SIZES:
        c = case(size, torch.float32)
        shape = (len(c["image"]), c["height"], c["width"], size[0])
        whole = torch.full((math.prod(shape) + 64,), canary)
        out = whole[32:-32].view(shape).permute(0, 3, 1, 2)
        for name in ("clean", "crops"):
            c[name] = c[name].contiguous(memory_format=torch.channels_last)
        native.paste(out, Paste(**c, pad=0.0))
        assert torch.equal(out, by_hand(c, 0.0))
        assert torch.all(whole[:32] == canary)
        assert torch.all(whole[-32:] == canary)


def test_no_tiles(backend: str) -> None:
    c = case(SIZES[1], torch.float32, count=0)
    assert ops.paste(**c, backend=backend).shape == (0, 3, 5, 6)


@pytest.mark.parametrize("crops", ["each", "one", "none"])
def test_opcheck(crops: str, backend: str) -> None:
    c = case(SIZES[1], torch.float32, crops=crops)
    assert passes(torch.library.opcheck(operators.paste, (*c.values(), 0.5, backend)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crops": torch.zeros(22, 3, 3, 2)}, "crops: expected shape"),
        ({"crops": torch.zeros(23, 4, 3, 2)}, "crops: expected shape"),
        ({"crops": torch.zeros(23, 3, 3, 2).double()}, "crops: expected torch.float32"),
        ({"image": torch.zeros(23, dtype=torch.int64)}, "image: expected int32"),
        ({"row": torch.zeros(22, dtype=torch.int32)}, "row: expected int32 of shape"),
        ({"cols": torch.zeros(4, 2, dtype=torch.int32)}, "cols: expected int32 of shape"),
        ({"clean": torch.zeros(3, 3, 7, 5, dtype=torch.int32)}, "clean: "),
        ({"height": 0}, "height, width: expected at least 1"),
    ],
)
def test_bad_arguments(change: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        ops.paste(**{**case(SIZES[1], torch.float32), **change})
