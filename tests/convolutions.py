"""Convolutions that are computed by products."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sdsgsm_fast.engine import winograd

CASES = [  # batch, channels, outputs, height, width, padding
    (1, 1, 1, 3, 3, (0, 0)), (2, 5, 7, 9, 8, (1, 1)), (3, 33, 70, 8, 11, (0, 0)),
    (1, 64, 64, 4, 4, (2, 1)), (2, 40, 129, 7, 5, (0, 1)), (5, 15, 31, 6, 3, (1, 0)),
    (1, 600, 65, 5, 6, (1, 1)), (7, 17, 96, 13, 4, (0, 0)), (2, 3, 16, 1, 1, (1, 1)),
]  # fmt: skip


FORMS = [(tile, stride) for stride, tiles in winograd.TILES.items() for tile in tiles]


def last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def case(number: int, stride: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor, tuple[int, int]]:
    batch, channels, outputs, height, width, padding = CASES[number]
    x = last(torch.randn(batch, channels, height, width))
    weight = torch.randn(outputs, channels, 3, 3) / math.sqrt(9 * channels)
    rows, cols = ((n + 2 * p - 3) // stride + 1 for n, p in zip((height, width), padding, strict=True))
    shape = (batch, outputs, rows, cols)
    return x, weight, torch.randn(outputs), last(torch.randn(shape)), padding
