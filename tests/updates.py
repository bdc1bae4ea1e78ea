"""Arguments of the update of awkward shapes, dtypes and layouts."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sdsgsm_fast import ops

SHAPES = [
    (1, 1, 1, 1),
    (3, 3, 5, 7),
    (2, 1, 33, 31),
    (1, 4, 8, 9),
    (5, 3, 32, 32),
    (1, 3, 299, 299),
    (2, 513, 1, 1),
    (7, 2, 17, 16),
]


DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def ulp(dtype: torch.dtype) -> float:
    """Distance of neighbouring values just below 1."""
    return torch.finfo(dtype).eps


def given(shape: tuple[int, ...], dtype: torch.dtype, grad_dtype: torch.dtype) -> dict[str, Tensor]:
    batch, _, height, width = shape
    images = torch.rand(shape, dtype=torch.float64)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    return {
        "adv": (images + 0.05 * torch.randn(shape)).clamp(0, 1).to(dtype),
        "images": images.to(dtype),
        "grad": (torch.randn(shape) * 10 ** torch.empty(batch, 1, 1, 1).uniform_(-3, 2)).to(grad_dtype),
        "domain": torch.rand(batch, height, width),
        "momentum": torch.randn(shape).to(compute),
        "active": torch.rand(batch) < 0.8,
        "eps": torch.rand(batch) * 0.2,
        "alpha": torch.rand(batch) * 0.1,
        "background": torch.rand(batch),
    }


def settings(i: int) -> dict[str, object]:
    return {
        "gain": (1.0, 0.5, 3.0, math.inf)[i % 4],
        "decay": (0.0, 1.0, 0.9)[i % 3],
        "sign": (1.0, -1.0)[i % 2],
        "normalize": ops.NORMALIZE[(i // 2) % 4],
    }


def run(t: dict[str, Tensor], backend: str, **extra: object) -> tuple[Tensor, Tensor]:
    arguments = {**t, **extra}
    positional = [arguments.pop(name) for name in ("adv", "images", "grad", "domain")]
    return ops.update(*positional, **arguments, backend=backend)
