"""Pictures of a gallery: for each image a strip of its views, small enough for ten thousand on a page."""

from __future__ import annotations

import base64
import io
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...common.optional import require
from ..kinds import ATTACK, Kind

SIDE = 96  # pixels of a tile at most
QUALITY = 80  # of WebP

Views = list[tuple[str, Tensor]]
"""Names and images (n, 3, H, W) in [0, 1]."""


def views_of(kind: Kind, found: dict[str, Tensor], clean: Tensor | None) -> Views:
    """What is to be seen of images.

    Parameters
    ----------
    kind, found
        Of the set: tensors of images, domains or maps, (n, …).
    clean
        The clean images (n, C, H, W), if they are at hand.
    """
    views: Views = [] if clean is None else [("clean", _colours(clean))]
    if kind != ATTACK:
        heat = _heat(found["maps"])
        over = [] if clean is None else [("both", (_colours(clean).mean(1, keepdim=True) + heat) / 2)]
        return [*views, ("map", heat), *over]
    if "domain" in found:
        views.append(("domain", found["domain"][:, None].expand(-1, 3, -1, -1)))
    if clean is not None:
        change = found["images"] - clean
        most = change.abs().amax((1, 2, 3), keepdim=True).clamp(min=torch.finfo(change.dtype).tiny)
        views.append(("perturbation", _colours(0.5 + change / most / 2)))
    return [*views, ("adversarial", _colours(found["images"]))]


def _colours(images: Tensor) -> Tensor:
    """Three channels; of one channel grey, of others the mean."""
    return images if images.shape[1] == 3 else images.mean(1, keepdim=True).expand(-1, 3, -1, -1)


def _heat(maps: Tensor) -> Tensor:
    """Maps (n, H, W) in red where they are positive and in blue where negative, each by its own largest value."""
    share = maps / maps.abs().amax((1, 2), keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)
    up, down = share.clamp(min=0), (-share).clamp(min=0)
    return torch.stack([1 - down, 1 - up - down, 1 - up], 1)


def strips(views: Views) -> list[str]:
    """A strip an image, its views side by side, as base64 of a WebP file."""
    pixels = torch.cat([_small(images) for _, images in views], 3)
    rows = (pixels.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    image_module = require("PIL.Image", extra="cli", purpose="sdsgsm report")
    return [_encoded(image_module.fromarray(row)) for row in rows]


def _small(images: Tensor) -> Tensor:
    height, width = images.shape[2:]
    share = SIDE / max(height, width)
    if share >= 1:
        return images
    return F.interpolate(images, (max(1, round(height * share)), max(1, round(width * share))), mode="area")


def _encoded(image: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=QUALITY)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
