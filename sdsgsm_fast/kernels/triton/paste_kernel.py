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
    clean_ptr, crops_ptr, out_ptr, image_ptr, row_ptr, col_ptr, rows_ptr, cols_ptr, total, pad,
    channels, map_h, map_w, crop_h, crop_w, tile_h, tile_w, crop_step,
    HAS_CROPS: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Write CHANNELS channels of PIXELS consecutive pixels of the tiles, `total` in all.

    All maps are channels_last; `crop_step` is 0 where one crop serves all tiles, else 1.
    """
    pixel = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    channel = (tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS))[None, :]
    there = pixel < total
    tile, inside = pixel // (tile_h * tile_w), (pixel % (tile_h * tile_w)).to(tl.int32)
    row = rows_ptr + tl.load(row_ptr + tile, mask=there, other=0) * 3
    col = cols_ptr + tl.load(col_ptr + tile, mask=there, other=0) * 3
    y = tl.load(row, mask=there, other=0) + inside // tile_w
    x = tl.load(col, mask=there, other=0) + inside % tile_w
    within = there & (y >= 0) & (y < map_h) & (x >= 0) & (x < map_w)
    image = tl.load(image_ptr + tile, mask=there, other=0).to(tl.int64)
    clean = (((image * map_h + y) * map_w + x) * channels)[:, None] + channel
    known = channel < channels
    kind = out_ptr.dtype.element_ty
    value = (tl.zeros((PIXELS, CHANNELS), tl.float32) + pad).to(kind)
    if HAS_CROPS:
        top, left = tl.load(row + 1, mask=there, other=0), tl.load(col + 1, mask=there, other=0)
        bottom, right = tl.load(row + 2, mask=there, other=0), tl.load(col + 2, mask=there, other=0)
        changed = within & (y >= top) & (y < bottom) & (x >= left) & (x < right)
        start = ((tile * crop_step * crop_h + y - top) * crop_w + x - left) * channels
        crop = tl.load(crops_ptr + start[:, None] + channel, mask=changed[:, None] & known)
        value = tl.where(changed[:, None], crop, value)
        within = within & (changed == 0)
    seen = tl.load(clean_ptr + clean, mask=within[:, None] & known)
    value = tl.where(within[:, None], seen, value)
    place = (pixel * channels)[:, None] + channel
    tl.store(out_ptr + place, value, mask=there[:, None] & known)


def launch(out: Tensor, p: Paste) -> None:
    """Launch one program for every block of pixels and channels."""
    crops = p.clean if p.crops is None else p.crops
    _, channels, map_h, map_w = p.clean.shape
    together = min(triton.next_power_of_2(channels), MOST_CHANNELS)
    pixels, total = BLOCK // together, out.numel() // channels
    paste[(triton.cdiv(total, pixels), triton.cdiv(channels, together))](
        p.clean, crops, out, p.image, p.row, p.col, p.rows, p.cols, total, p.pad,
        channels, map_h, map_w, *crops.shape[2:], *out.shape[2:], int(len(crops) > 1),
        HAS_CROPS=p.crops is not None, PIXELS=pixels, CHANNELS=together,
    )  # fmt: skip
