"""Zeroed-out copies of a batch in Triton: METHOD.md, section 1."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..calls import Occlude

BLOCK = 1024
ENOUGH = 2048  # programs, to keep a large GPU busy
MOST_COPIES = 32  # of a program, if that leaves enough programs


@triton.jit
def occlude(
    images_ptr, out_ptr, fill_ptr, mean_ptr, std_ptr, size, count, first, copies, runs, tiles,
    channels, height, width, patch_h, patch_w, stride_h, stride_w, cols,
    CHANNELS_LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write BLOCK consecutive values of an image to a run of its copies, one after another.

    They are read, normalised and converted once; the fill takes their place under a window.
    """
    program = tl.program_id(0)
    run, b = program // tiles % runs, (program // tiles // runs).to(tl.int64)
    inside = program % tiles * BLOCK + tl.arange(0, BLOCK)
    mask = inside < size
    if CHANNELS_LAST:
        channel, pixel = inside % channels, inside // channels
    else:
        channel, pixel = inside // (height * width), inside % (height * width)
    y, x = pixel // width, pixel % width
    seen = tl.load(images_ptr + b * size + (channel * (height * width) + pixel), mask=mask, other=0.0)
    mean = tl.load(mean_ptr + channel, mask=mask, other=0.0)
    std = tl.load(std_ptr + channel, mask=mask, other=1.0)
    fill = tl.load(fill_ptr + channel, mask=mask, other=0.0)
    kind = out_ptr.dtype.element_ty
    clean = ((seen.to(tl.float32) - mean) / std).to(kind)
    filled = ((fill - mean) / std).to(kind)
    start, stop = run * copies, tl.minimum(run * copies + copies, count)
    for copy in range(start, stop):
        window = first + copy
        top, left = window // cols * stride_h, window % cols * stride_w
        hidden = (y >= top) & (y < top + patch_h) & (x >= left) & (x < left + patch_w)
        place = out_ptr + (b * count + copy) * size
        tl.store(place + inside, tl.where(hidden, filled, clean), mask=mask)


def launch(out: Tensor, o: Occlude) -> None:
    """Launch a program for every BLOCK values of an image and run of its copies."""
    batch, channels, height, width = o.images.shape
    size = channels * height * width
    fill, mean, std = o.constants(torch.float32)
    w = o.windows
    tiles = triton.cdiv(size, BLOCK)
    copies = max(1, min(batch * o.count * tiles // ENOUGH, MOST_COPIES))
    runs = triton.cdiv(o.count, copies)
    occlude[(batch * runs * tiles,)](
        o.images, out, fill, mean, std, size, o.count, o.first, copies, runs, tiles,
        channels, height, width, *w.patch, *w.stride, w.cols,
        CHANNELS_LAST=not out.is_contiguous(), BLOCK=BLOCK,
    )  # fmt: skip
