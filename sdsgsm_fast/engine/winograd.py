"""3×3 convolutions by Winograd's products.

F(2×2, 3×3) takes 16 where a convolution takes 36, F(4×4, 3×3) takes 36 where it takes 144. With
stride 2 a tile of 4×4 outputs takes 81: its even inputs and its odd ones go apart. Tiles at the end
of a map are as small as what is left, by some of the same points and with the same weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels import native
from ..kernels.calls import Paste

PANEL = 64  # outputs, kPanel of csrc/winograd.h
PRODUCT = 1.4  # time of a product, in those of a direct convolution; measured 0.9 to 1.6
TILES = {1: (2, 4), 2: (4,)}
"""Outputs of a tile along a line, for each stride."""
WORTH = {1: 0.75, 2: 0.65}  # most products, as a share of a direct convolution's


def points(tile: int, stride: int = 1) -> int:
    """Products of so many outputs along a line."""
    return tile + 2 if stride == 1 else 2 * tile + 1


def pack(weight: Tensor, tile: int, dtype: torch.dtype = torch.float32, stride: int = 1) -> Tensor:
    """G·g·Gᵀ of each kernel, laid out for `csrc/winograd.h`.

    Parameters
    ----------
    weight
        (K, C, 3, 3) float32 on the CPU.
    tile
        Outputs of a tile along a line, 2 or 4.
    dtype
        Of the maps to come: float32, or bfloat16 where `native.winograd_in_bfloat16`.
    stride
        1 or 2, on both axes.

    Returns
    -------
    Tensor
        (⌈K/64⌉, points², C, 64) float32 or (⌈K/64⌉, points², ⌈C/2⌉, 64, 2) bfloat16;
        outputs beyond K are zero.
    """
    outputs, channels = weight.shape[:2]
    pairs = (channels, PANEL) if dtype == torch.float32 else (-(-channels // 2), PANEL, 2)
    shape = (-(-outputs // PANEL), points(tile, stride) ** 2, *pairs)
    packed = torch.empty(shape, dtype=dtype, device="cpu")  # whatever the defaults are
    native.winograd_pack(packed, weight.contiguous())
    return packed


def products(tile: int, height: int, width: int, stride: int = 1) -> int:
    """Products a channel and output that maps of a size take; tiles at the end may be smaller."""

    def along(size: int) -> int:
        rest = size % tile
        return size // tile * points(tile, stride) + (points(rest, stride) if rest else 0)

    return along(height) * along(width)


def tile_for(height: int, width: int, stride: int = 1) -> int | None:
    """Tile that covers outputs of a size with the fewest products; None if none is worth it."""
    if min(height, width) == 1:  # a direct convolution leaves out what lies beyond the border
        return None
    best = min(TILES[stride], key=lambda tile: products(tile, height, width, stride))
    worth = WORTH[stride] * 9 * height * width
    return best if products(best, height, width, stride) <= worth else None


def share(height: int, width: int, stride: int = 1) -> float:
    """Of the time that a direct convolution takes for outputs of a size."""
    tile = tile_for(height, width, stride)
    if tile is None:
        return 1.0
    return PRODUCT * products(tile, height, width, stride) / (9 * height * width)


def convolve(
    x: Tensor | Paste,
    packed: Tensor,
    outputs: int,
    bias: Tensor | None,
    other: Tensor | Paste | None,
    padding: tuple[int, int],
    relu: bool,
) -> Tensor:
    """relu(convolution(x) + bias + other) with the stride of the weights, by the CPU's kernel.

    Parameters
    ----------
    x
        (B, C, H, W) float32, or bfloat16 as the weights. Tiles are not written out; zeros are
        beyond their border.
    packed
        The weights as `pack` returns them.
    outputs
        K, the number of channels of the result.
    bias
        (K,) float32 or None.
    other
        Of the result's shape and dtype, tiles within their border for one, or None.
    padding
        Zeros around the input, rows and columns.
    relu
        Whether negative results become 0.

    Returns
    -------
    Tensor
        (B, K, ⌊(H + 2·padding − 3)/stride⌋ + 1, the same for W), channels_last.
    """
    stride = 2 if packed.shape[1] == points(4, 2) ** 2 else 1
    height, width = ((x.shape[2 + i] + 2 * padding[i] - 3) // stride + 1 for i in (0, 1))
    out = torch.empty(
        (x.shape[0], outputs, height, width), dtype=packed.dtype, device=packed.device,
        memory_format=torch.channels_last,
    )  # fmt: skip
    others = None if other is None else _dense(other)
    native.winograd(out, _dense(x), packed, bias, others, padding, relu)
    return out


def _dense(x: Tensor | Paste) -> Tensor | Paste:
    return x.dense() if isinstance(x, Paste) else x.contiguous(memory_format=torch.channels_last)
