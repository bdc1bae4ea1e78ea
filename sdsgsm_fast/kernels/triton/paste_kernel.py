"""Tiles of clean maps with crops pasted in, in Triton: incremental occlusion's data movement."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..calls import Paste

BLOCK = 2048  # values of a program
MOST_CHANNELS = 128


@triton.jit
def paste(
    clean_ptr, crops_ptr, out_ptr, image_ptr, row_ptr, col_ptr, rows_ptr, cols_ptr, pieces, pad,
    channels, map_h, map_w, crop_h, crop_w, tile_h, tile_w, crop_step,
    HAS_CROPS: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Write CHANNELS channels of PIXELS consecutive pixels of one tile.

    All maps are channels_last; `crop_step` is 0 where one crop serves all tiles, else 1.
    """
    tile = tl.program_id(0) // pieces
    inside = tl.program_id(0) % pieces * PIXELS + tl.arange(0, PIXELS)
    channel = (tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS))[None, :]
    there, known = inside < tile_h * tile_w, channel < channels
    row, col = rows_ptr + tl.load(row_ptr + tile) * 3, cols_ptr + tl.load(col_ptr + tile) * 3
    y, x = tl.load(row) + inside // tile_w, tl.load(col) + inside % tile_w
    within = there & (y >= 0) & (y < map_h) & (x >= 0) & (x < map_w)
    kind = out_ptr.dtype.element_ty
    value = (tl.zeros((PIXELS, CHANNELS), tl.float32) + pad).to(kind)
    tile = tile.to(tl.int64)
    if HAS_CROPS:
        top, left, bottom, right = tl.load(row + 1), tl.load(col + 1), tl.load(row + 2), tl.load(col + 2)
        changed = within & (y >= top) & (y < bottom) & (x >= left) & (x < right)
        crop = crops_ptr + tile * crop_step * (crop_h * crop_w * channels)
        at = ((y - top) * crop_w + x - left) * channels
        value = tl.load(crop + (at[:, None] + channel), mask=changed[:, None] & known, other=value)
        within = within & (changed == 0)
    clean = clean_ptr + tl.load(image_ptr + tile).to(tl.int64) * (map_h * map_w * channels)
    at = (y * map_w + x) * channels
    value = tl.load(clean + (at[:, None] + channel), mask=within[:, None] & known, other=value)
    place = out_ptr + tile * (tile_h * tile_w * channels)
    tl.store(place + ((inside * channels)[:, None] + channel), value, mask=there[:, None] & known)


def launch(out: Tensor, p: Paste) -> None:
    """Launch one program for every block of pixels and channels of a tile."""
    crops = p.clean if p.crops is None else p.crops
    _, channels, map_h, map_w = p.clean.shape
    tile_h, tile_w = out.shape[2:]
    together = min(triton.next_power_of_2(channels), MOST_CHANNELS)
    pixels = min(BLOCK // together, triton.next_power_of_2(tile_h * tile_w))
    pieces = triton.cdiv(tile_h * tile_w, pixels)
    paste[(len(out) * pieces, triton.cdiv(channels, together))](
        p.clean, crops, out, p.image, p.row, p.col, p.rows, p.cols, pieces, p.pad,
        channels, map_h, map_w, *crops.shape[2:], tile_h, tile_w, int(len(crops) > 1),
        HAS_CROPS=p.crops is not None, PIXELS=pixels, CHANNELS=together,
    )  # fmt: skip
