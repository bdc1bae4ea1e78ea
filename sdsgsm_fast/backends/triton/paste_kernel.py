"""Tiles of clean maps with crops pasted in, in Triton: incremental occlusion's data movement."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..calls import Paste

BLOCK = 1024


@triton.jit
def paste(
    clean_ptr, crops_ptr, out_ptr, image_ptr, row_ptr, col_ptr, rows_ptr, cols_ptr, total, pad,
    channels, map_h, map_w, crop_h, crop_w, tile_h, tile_w, crop_step,
    HAS_CROPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write BLOCK consecutive values of the output, whichever tiles they belong to.

    All maps are channels_last; `crop_step` is 0 where one crop serves all tiles, else 1.
    """
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = places < total
    size = tile_h * tile_w * channels
    tile, inside = places // size, (places % size).to(tl.int32)
    channel, pixel = inside % channels, inside // channels
    row = tl.load(row_ptr + tile, mask=mask, other=0) * 3
    col = tl.load(col_ptr + tile, mask=mask, other=0) * 3
    top, left = tl.load(rows_ptr + row + 1, mask=mask), tl.load(cols_ptr + col + 1, mask=mask)
    y = tl.load(rows_ptr + row, mask=mask) + pixel // tile_w
    x = tl.load(cols_ptr + col, mask=mask) + pixel % tile_w
    within = mask & (y >= 0) & (y < map_h) & (x >= 0) & (x < map_w)
    image = tl.load(image_ptr + tile, mask=mask, other=0).to(tl.int64)
    clean = ((image * map_h + y) * map_w + x) * channels + channel
    if HAS_CROPS:
        bottom = tl.load(rows_ptr + row + 2, mask=mask)
        right = tl.load(cols_ptr + col + 2, mask=mask)
        changed = within & (y >= top) & (y < bottom) & (x >= left) & (x < right)
        crop = ((tile * crop_step * crop_h + y - top) * crop_w + x - left) * channels + channel
        value = tl.load(clean_ptr + clean, mask=within & ~changed, other=0.0)
        value = tl.where(changed, tl.load(crops_ptr + crop, mask=changed, other=0.0), value)
    else:
        value = tl.load(clean_ptr + clean, mask=within, other=0.0)
    border = (tl.zeros((BLOCK,), tl.float32) + pad).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + places, tl.where(within, value, border), mask=mask)


def launch(out: Tensor, p: Paste) -> None:
    """Launch one program for every BLOCK values of the output."""
    crops = p.clean if p.crops is None else p.crops
    _, channels, map_h, map_w = p.clean.shape
    paste[(triton.cdiv(out.numel(), BLOCK),)](
        p.clean, crops, out, p.image, p.row, p.col, p.rows, p.cols, out.numel(), p.pad,
        channels, map_h, map_w, *crops.shape[2:], *out.shape[2:], int(len(crops) > 1),
        HAS_CROPS=p.crops is not None, BLOCK=BLOCK,
    )  # fmt: skip
