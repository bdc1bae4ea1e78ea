"""Image sources: labelled crops of photographs that ship inside scikit-image."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..common.optional import require

PHOTOS = (
    "astronaut",
    "chelsea",
    "coffee",
    "rocket",
    "hubble_deep_field",
    "immunohistochemistry",
    "retina",
    "stereo_motorcycle",
    "brick",
    "grass",
)
CLASS_NAMES = (
    "astronaut",
    "cat",
    "coffee",
    "rocket",
    "galaxies",
    "tissue",
    "retina",
    "motorcycle",
    "brick",
    "grass",
)

_SIDE = 32  # pixels of a crop after resizing
_GRID = 4  # a photograph is divided into 4 × 4 cells, of which …
_HELD_OUT = ((0, 1), (1, 3), (2, 0), (3, 2))  # … these (row, column) are test territory
_MIN_CONTRAST = 0.03  # standard deviation below which a crop shows nothing but a flat colour
_LARGE = 800  # photographs with a longer side are halved, so that a crop still shows structure


def photo_crops(split: str, per_class: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw 32×32 crops of ten photographs; the class is the photograph.

    Each photograph is divided into 4 × 4 cells. Test crops lie inside one of four held-out cells,
    training crops touch none of them, so the two splits share no pixel.

    Parameters
    ----------
    split
        "train" or "test".
    per_class
        Crops of each photograph.
    seed
        Seed of the positions and scales; the same seed gives the same crops.

    Returns
    -------
    images : Tensor
        (10·per_class, 3, 32, 32) float32 in [0, 1], rounded to 8-bit values, classes interleaved.
    labels : Tensor
        (10·per_class,) int64, indices into `CLASS_NAMES`.

    Raises
    ------
    ValueError
        If `split` is unknown or `per_class` is negative.
    ModuleNotFoundError
        If scikit-image, which holds the photographs, is not installed.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split: expected 'train' or 'test', found {split!r}")
    if per_class < 0:
        raise ValueError(f"per_class: must be at least 0, found {per_class}")
    crops = torch.empty(per_class, len(PHOTOS), 3, _SIDE, _SIDE)
    for label, photo in enumerate(_photographs()):
        rng = np.random.default_rng((seed, label, split == "test"))
        for i in range(per_class):
            crops[i, label] = _draw(photo, split, rng)
    labels = torch.arange(len(PHOTOS)).repeat(per_class)
    return crops.flatten(0, 1), labels


def _photographs() -> Iterator[Tensor]:
    """Yield each photograph as float32 (3, H, W) in [0, 1]."""
    data = require("skimage.data", extra="cli", purpose="the embedded photographs")
    for name in PHOTOS:
        loaded = getattr(data, name)()
        pixels = loaded[0] if isinstance(loaded, tuple) else loaded  # stereo pairs: the left view
        photo = torch.from_numpy(np.ascontiguousarray(pixels)).float() / 255
        photo = photo.expand(3, *photo.shape) if photo.ndim == 2 else photo.permute(2, 0, 1)
        yield F.avg_pool2d(photo, 2) if max(photo.shape[1:]) > _LARGE else photo


def _draw(photo: Tensor, split: str, rng: np.random.Generator) -> Tensor:
    """Draw one crop of the split, between 1 and 1.5 (test) or 2 (training) times 32 pixels wide."""
    height, width = photo.shape[1:]
    while True:
        side = int(rng.integers(_SIDE, (3 * _SIDE // 2 if split == "test" else 2 * _SIDE) + 1))
        top = int(rng.integers(0, height - side + 1))
        left = int(rng.integers(0, width - side + 1))
        if _territory(top, left, side, height, width) != split:
            continue
        crop = photo[:, top : top + side, left : left + side]
        if float(crop.mean(0).std()) < _MIN_CONTRAST:
            continue
        resized = F.interpolate(crop[None], (_SIDE, _SIDE), mode="bilinear", antialias=True, align_corners=False)[0]
        return (resized.clamp(0, 1) * 255).round() / 255


def _territory(top: int, left: int, side: int, height: int, width: int) -> str:
    """Tell which split a square crop belongs to: "train", "test" or "" where it straddles both."""
    rows = range(top * _GRID // height, (top + side - 1) * _GRID // height + 1)
    cols = range(left * _GRID // width, (left + side - 1) * _GRID // width + 1)
    held_out = [(row, col) in _HELD_OUT for row in rows for col in cols]
    if len(held_out) == 1 and held_out[0]:
        return "test"
    return "" if any(held_out) else "train"
