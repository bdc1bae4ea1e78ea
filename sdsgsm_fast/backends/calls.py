"""What the operators hand to a backend: arguments that are checked, dense and of one device."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..numerics import Setting
from ..windows import Windows


@dataclass(slots=True)
class Update:
    """Arguments of equations 3 and 5 to 7; see `ops.update`.

    Image-like tensors (B, C, H, W) share one dense layout, contiguous or channels_last; `domain`
    (B, H, W), `momentum` and settings (B,) have the compute dtype.
    """

    adv: Tensor
    images: Tensor
    grad: Tensor
    domain: Tensor | None
    momentum: Tensor | None
    active: Tensor | None
    eps: Setting
    alpha: Setting
    background: Setting
    gain: float
    decay: float
    bounds: tuple[float, float]
    sign: float
    normalize: str


@dataclass(slots=True)
class Occlude:
    """Arguments of the zero-out; see `ops.occlude`.

    `images` (B, C, H, W) are contiguous; `fill`, `mean` and `std` are float64 (C,) on the CPU.
    """

    images: Tensor
    windows: Windows
    first: int
    count: int
    fill: Tensor
    mean: Tensor
    std: Tensor
