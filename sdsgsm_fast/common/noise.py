"""Random numbers that belong to an image rather than to its batch, and an image of noise."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .numerics import compute_dtype

START, DIVERSITY, JITTER = range(3)
"""What random numbers are for; each purpose has streams of its own."""


def random_stream(seed: int, place: int, restart: int, update: int = 0, *, kind: int) -> np.random.Generator:
    """Random numbers of one image at one update, the same whatever batch and device it is on.

    Parameters
    ----------
    seed, place, restart, update
        At least 0 and less than 2**64: the seed, the image's place in its data set, its restart
        and its number of updates.
    kind
        `START`, `DIVERSITY` or `JITTER`.
    """
    # The counter's first number runs through the stream; the others tell streams apart.
    key = np.array([seed, place], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=[0, update, kind, restart]))


def uniform_noise(like: Tensor, places: Tensor, seed: int, restart: int) -> Tensor:
    """U(−1, 1) of the shape, dtype and device of `like`; a stream of numbers for each image.

    Parameters
    ----------
    like
        (B, C, H, W).
    places
        (B,) integer, the images' places in their data set.
    seed, restart
        Which stream; at least 0 and less than 2**64. The numbers depend on (seed, place, restart)
        alone, not on the batch nor on the device.
    """
    noise = np.empty(tuple(like.shape), dtype=np.float32)
    for row, place in enumerate(places.tolist()):
        random_stream(seed, place, restart, kind=START).random(dtype=np.float32, out=noise[row])
    return torch.from_numpy(noise).to(like) * 2 - 1


def noise_like(images: Tensor) -> Tensor:
    """One image of noise over the images' range, always the same."""
    kind = compute_dtype(images)
    low, high = images.to(kind).aminmax()
    draw = torch.Generator(images.device).manual_seed(0)
    noise = torch.rand((1, *images.shape[1:]), generator=draw, dtype=kind, device=images.device)
    spread = torch.where(high > low, high - low, 1.0)
    return (low + spread * noise).to(images.dtype)
