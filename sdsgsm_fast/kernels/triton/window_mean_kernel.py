"""The mean score of the windows over each pixel in Triton: METHOD.md, equation 2."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ...common.windows import Windows

BLOCK = 1024


@triton.jit
def window_mean(
    scores_ptr, out_ptr, total, height, width, patch_h, patch_w, stride_h, stride_w, rows, cols,
    OVER_H: tl.constexpr, OVER_W: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One value a pixel; at most OVER_H × OVER_W windows cover it.

    Summed in float64 and in row-major order of the windows, as the reference does it, so that the
    ranking has the same ties.
    """
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = places < total
    b, pixel = places // (height * width), (places % (height * width)).to(tl.int32)
    y, x = pixel // width, pixel % width
    top = tl.where(y < patch_h, 0, (y - patch_h) // stride_h + 1)
    left = tl.where(x < patch_w, 0, (x - patch_w) // stride_w + 1)
    bottom, right = tl.minimum(y // stride_h, rows - 1), tl.minimum(x // stride_w, cols - 1)
    sum = tl.zeros((BLOCK,), tl.float64)
    for i in range(OVER_H):
        for j in range(OVER_W):
            covers = mask & (top + i <= bottom) & (left + j <= right)
            at = (b * rows + top + i) * cols + left + j
            sum += tl.load(scores_ptr + at, mask=covers, other=0.0).to(tl.float64)
    over = ((bottom - top + 1) * (right - left + 1)).to(tl.float64)
    tl.store(out_ptr + places, (sum / over).to(out_ptr.dtype.element_ty), mask=mask)


def launch(out: Tensor, scores: Tensor, windows: Windows) -> None:
    """Launch one program for every BLOCK pixels."""
    (patch_h, patch_w), (stride_h, stride_w) = windows.patch, windows.stride
    window_mean[(triton.cdiv(out.numel(), BLOCK),)](
        scores, out, out.numel(), windows.height, windows.width, patch_h, patch_w,
        stride_h, stride_w, windows.rows, windows.cols,
        OVER_H=triton.cdiv(patch_h, stride_h), OVER_W=triton.cdiv(patch_w, stride_w), BLOCK=BLOCK,
    )  # fmt: skip
