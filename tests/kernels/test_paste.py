"""The paste of incremental occlusion: every backend copies the bits that the reference copies."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from steps import passes
from tiles import DTYPES, SIZES, by_hand, case

from sdsgsm_fast import ops
from sdsgsm_fast.kernels import native, operators
from sdsgsm_fast.kernels.calls import Paste

# channels; map; crop; tile


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
