"""What zeroed-out pixels become: values, an image, or what is made of the image itself."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..common import checks

Fill = checks.PerChannel | str
"""One value, one a channel, a tensor (C, H, W) or (B, C, H, W), "mean" or "blur"."""

FILLS = ("mean", "blur")
BLUR = 0.05  # standard deviation of "blur", as a share of the longer side


def check_fill(fill: Fill, images: Tensor) -> None:
    """Raise ValueError or TypeError if a fill does not fit images (B, C, H, W)."""
    if isinstance(fill, str):
        checks.choice("fill", fill, FILLS)
    elif not _is_image(fill):
        checks.per_channel("fill", fill, images.shape[1])
    else:
        assert isinstance(fill, Tensor)
        allowed = {tuple(images.shape[1:]), tuple(images.shape), (1, *images.shape[1:])}
        if tuple(fill.shape) not in allowed:
            raise ValueError(
                f"fill: expected a value, one a channel, or shape {tuple(images.shape[1:])} or {tuple(images.shape)} "
                f"as images, found {tuple(fill.shape)}"
            )
        checks.same_device("fill", fill, images)
        if not fill.is_floating_point():
            raise TypeError(f"fill: expected a floating dtype, found {fill.dtype}")
        if not bool(fill.isfinite().all()):
            raise ValueError("fill: expected finite values, found NaN or infinity")


def of_one_batch(fill: Fill) -> bool:
    """Whether a fill has an image for each image of one batch."""
    return isinstance(fill, Tensor) and fill.ndim == 4 and len(fill) > 1


def constants(fill: Fill, images: Tensor) -> tuple[float, ...] | Tensor:
    """A value for each channel, or images (B, C, H, W) whose pixels are taken."""
    if isinstance(fill, str):
        made = _blurred(images) if fill == "blur" else images.mean((2, 3), keepdim=True)
        return made.to(images.dtype).expand_as(images)
    if _is_image(fill):
        assert isinstance(fill, Tensor)
        return fill.detach().to(images.dtype).expand_as(images)
    return checks.per_channel("fill", fill, images.shape[1])


def _is_image(fill: Fill) -> bool:
    return isinstance(fill, Tensor) and fill.ndim >= 2


def _blurred(images: Tensor) -> Tensor:
    """Blur by a Gaussian, the border's pixels repeated beyond it."""
    sigma = BLUR * max(images.shape[2:])
    half = max(1, round(3 * sigma))
    offsets = torch.arange(-half, half + 1, dtype=torch.float64, device=images.device)
    weights = torch.exp(-((offsets / sigma) ** 2) / 2)
    weights = (weights / weights.sum()).to(images.dtype)
    planes = images.flatten(0, 1)[:, None]
    for axis, view in ((2, (1, 1, -1, 1)), (3, (1, 1, 1, -1))):
        pad = (0, 0, half, half) if axis == 2 else (half, half, 0, 0)
        planes = F.conv2d(F.pad(planes, pad, mode="replicate"), weights.view(view))
    return planes.view_as(images)
