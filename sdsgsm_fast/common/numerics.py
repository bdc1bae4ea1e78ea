"""The few formulas and conversions that operators, classifier and loop share."""

from __future__ import annotations

import torch
from torch import Tensor

Setting = float | Tensor
"""A number, or a tensor (B,) with a value for each image."""


def compute_dtype(images: Tensor) -> torch.dtype:
    """Dtype of the arithmetic: float64 for float64 images, float32 for all others."""
    return torch.float64 if images.dtype == torch.float64 else torch.float32


def column(value: Setting) -> Setting:
    """Shape a tensor (B,) so that it broadcasts over (B, C, H, W)."""
    return value[:, None, None, None] if isinstance(value, Tensor) else value


def allocation(background: Setting, domain: Tensor | None) -> Setting:
    """Equation 3: w = β + (1 − β)·m, the share of ε and α of each pixel, (B, 1, H, W) or a number.

    Parameters
    ----------
    background
        β, a number or (B,).
    domain
        m, (B, H, W); None for m ≡ 1.
    """
    if domain is None:
        return 1.0
    beta = column(background)
    return beta + (1 - beta) * domain[:, None]


def normalised(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(x − mean)/std in the compute dtype; mean and std are (C,) of that dtype."""
    exact = images.to(compute_dtype(images))
    return (exact - mean[:, None, None]) / std[:, None, None]


def rounding(dtype: torch.dtype) -> float:
    """What rounding may take from a logit: a share of the largest, 1000 units, at most a tenth."""
    return min(1000 * torch.finfo(dtype).eps, 0.1)


def logits_agree(found: Tensor, expected: Tensor, share: float) -> bool:
    """Whether logits are those expected, up to a share of the largest, however small they are."""
    off = (found.to(expected.dtype) - expected).abs()
    return bool((off <= share * expected.abs().amax()).all())
