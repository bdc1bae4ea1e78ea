"""What the operators hand to a backend: arguments that are checked, dense and of one device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ..common.numerics import Setting
from ..common.windows import Windows

NORMALIZE = {"none": 0, "mean_abs": 1, "max_abs": 2, "rms": 3}  # the numbers that kernels know


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

    `images` (B, C, H, W) are contiguous; `fill`, `mean` and `std` have a value for each channel.
    """

    images: Tensor
    windows: Windows
    first: int
    count: int
    fill: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def constants(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """`fill`, as a pixel of the images would hold it, `mean` and `std` on their device."""
        fill, mean, std = (on_device(values, dtype, self.images.device) for values in (self.fill, self.mean, self.std))
        return fill.to(self.images.dtype).to(dtype), mean, std


@dataclass(slots=True)
class Paste:
    """Arguments of the paste, or tiles yet to be written; see `ops.paste`. Indices are int32."""

    clean: Tensor
    crops: Tensor | None
    image: Tensor
    row: Tensor
    col: Tensor
    rows: Tensor
    cols: Tensor
    height: int
    width: int
    pad: float

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(n, C, height, width)."""
        return (len(self.image), self.clean.shape[1], self.height, self.width)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the maps."""
        return self.clean.dtype

    def dense(self) -> Paste:
        """The same as kernels take it: maps channels_last, indices contiguous."""
        layout = torch.channels_last
        return Paste(
            self.clean.contiguous(memory_format=layout),
            None if self.crops is None else self.crops.contiguous(memory_format=layout),
            self.image.contiguous(), self.row.contiguous(), self.col.contiguous(),
            self.rows.contiguous(), self.cols.contiguous(), self.height, self.width, self.pad,
        )  # fmt: skip


@cache
def on_device(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of constants, made once and kept.

    A copy to a GPU waits, so no CUDA graph can hold it; and a graph holds the tensor's address.
    """
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)
