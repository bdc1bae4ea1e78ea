"""Batches of few different sizes: a GPU's libraries work out anew how to compute each."""

from __future__ import annotations

import torch
from torch import Tensor

LEAST = 8
STEPS = 8  # sizes from a power of two to the next: at most an eighth of a pass is for nothing


def steady_size(rows: int) -> int:
    """Round up to one of 8, 9, … 16, 18, 20, … 32, 36, 40, … and so on."""
    step = max(1, (1 << max(0, rows.bit_length() - 1)) // STEPS)
    return max(LEAST, -(-rows // step) * step)


def filled(x: Tensor, size: int) -> Tensor:
    """`x` (B, …) repeated up to `size` rows."""
    if len(x) == size:
        return x
    rows = torch.arange(size, device=x.device) % len(x)
    return x[rows]
