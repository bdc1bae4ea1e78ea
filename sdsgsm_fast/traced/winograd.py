"""3×3 convolutions by Winograd's F(2×2, 3×3): 16 products where a convolution takes 36."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends import native

PANEL = 64  # outputs, kPanel of csrc/winograd.h
SHARE = 0.55  # of the time that a direct convolution takes; measured 0.45 to 0.65


def pack(weight: Tensor) -> Tensor:
    """G·g·Gᵀ of each kernel, laid out for `csrc/winograd.h`.

    Parameters
    ----------
    weight
        (K, C, 3, 3) float32 on the CPU.

    Returns
    -------
    Tensor
        (⌈K/64⌉, 16, C, 64) float32; outputs beyond K are zero.
    """
    outputs, channels = weight.shape[:2]
    packed = torch.empty(-(-outputs // PANEL), 16, channels, PANEL)
    native.winograd_pack(packed, weight.contiguous())
    return packed


def suits(height: int, width: int) -> bool:
    """Whether tiles of 2×2 cover outputs of a size without too much waste."""
    tiles = -(-height // 2) * -(-width // 2)
    return 16 * tiles <= 0.75 * 9 * height * width


def convolve(
    x: Tensor,
    packed: Tensor,
    outputs: int,
    bias: Tensor | None,
    other: Tensor | None,
    padding: tuple[int, int],
    relu: bool,
) -> Tensor:
    """relu(convolution(x) + bias + other) with stride 1, by the CPU's kernel.

    Parameters
    ----------
    x
        (B, C, H, W) float32.
    packed
        The weights as `pack` returns them.
    outputs
        K, the number of channels of the result.
    bias
        (K,) or None.
    other
        Of the result's shape, or None.
    padding
        Zeros around the input, rows and columns.
    relu
        Whether negative results become 0.

    Returns
    -------
    Tensor
        (B, K, H + 2·padding − 2, W + 2·padding − 2), channels_last.
    """
    layout = torch.channels_last
    height, width = (x.shape[2 + i] + 2 * padding[i] - 2 for i in (0, 1))
    out = torch.empty(
        (len(x), outputs, height, width), dtype=x.dtype, device=x.device, memory_format=layout
    )
    x = x.contiguous(memory_format=layout)
    if other is not None:
        other = other.contiguous(memory_format=layout)
    native.winograd(out, x, packed, bias, other, padding, relu)
    return out
