"""Zeroed-out copies of a batch in Triton: METHOD.md, section 1."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..calls import Occlude

BLOCK = 1024


@triton.jit
def occlude(
    images_ptr, out_ptr, fill_ptr, mean_ptr, std_ptr, total, size, count, first,
    channels, height, width, patch_h, patch_w, stride_h, stride_w, cols,
    CHANNELS_LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write BLOCK consecutive values of the output, whichever copies they belong to."""
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = places < total
    copy, inside = places // size, (places % size).to(tl.int32)
    if CHANNELS_LAST:
        channel, pixel = inside % channels, inside // channels
    else:
        channel, pixel = inside // (height * width), inside % (height * width)
    y, x = pixel // width, pixel % width
    window = (first + copy % count).to(tl.int32)
    top, left = window // cols * stride_h, window % cols * stride_w
    hidden = (y >= top) & (y < top + patch_h) & (x >= left) & (x < left + patch_w)
    source = copy // count * size + channel * (height * width) + pixel
    seen = tl.load(images_ptr + source, mask=mask & ~hidden, other=0.0).to(tl.float32)
    fill = tl.load(fill_ptr + channel, mask=mask, other=0.0)
    value = tl.where(hidden, fill, seen)
    mean = tl.load(mean_ptr + channel, mask=mask, other=0.0)
    std = tl.load(std_ptr + channel, mask=mask, other=1.0)
    tl.store(out_ptr + places, ((value - mean) / std).to(out_ptr.dtype.element_ty), mask=mask)


def launch(out: Tensor, o: Occlude) -> None:
    """Launch one program for every BLOCK values of the output."""
    _, channels, height, width = o.images.shape
    fill, mean, std = o.constants(torch.float32)
    w = o.windows
    occlude[(triton.cdiv(out.numel(), BLOCK),)](
        o.images, out, fill, mean, std, out.numel(), channels * height * width, o.count, o.first,
        channels, height, width, *w.patch, *w.stride, w.cols,
        CHANNELS_LAST=not out.is_contiguous(), BLOCK=BLOCK,
    )  # fmt: skip
