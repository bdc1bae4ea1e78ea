"""Where bfloat16 is faster than float32, and what float32 means where TF32 stands in for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ..common.numerics import rounding

TF32_ROUNDING = 0.02
"""What TF32 may take from a logit, as a share of the largest: ten times what was seen, 2e-3."""


def bfloat16_gain(device: torch.device) -> float:
    """How many times faster products are in bfloat16 than in float32, roughly.

    On a CPU they gain with AMX, and twofold with AMD's AVX-512. With Intel's AVX-512 alone, also
    with its bfloat16 instructions, oneDNN's convolutions took up to twice as long as float32's. On
    CUDA it takes tensor cores for bfloat16, from compute capability 8.0 on.
    """
    if device.type == "cuda":
        return 8.0 if torch.cuda.get_device_capability(device) >= (8, 0) else 1.0
    if device.type != "cpu":
        return 1.0
    if has_amx():
        return 8.0
    return 2.0 if _supports("avx512_bf16") and _is_amd() else 1.0


def bfloat16_pays(device: torch.device) -> bool:
    """Whether a model that runs once gains from convolutions and products in bfloat16."""
    return bfloat16_gain(device) > 1


def uses_tf32(device: torch.device) -> bool:
    """Whether convolutions or products in float32 round their inputs to TF32, as cuDNN's do by default."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    return any(getattr(holder, name) == on for holder, name, on in _tf32_flags()[:2])


@contextmanager
def without_tf32(device: torch.device) -> Iterator[None]:
    """Have float32 be float32, to compare two ways of computing the same; flags come back as they were."""
    changed = [flag for flag in _tf32_flags() if getattr(flag[0], flag[1]) == flag[2]] if uses_tf32(device) else []
    try:
        for holder, name, on in changed:
            setattr(holder, name, "ieee" if isinstance(on, str) else False)
        yield
    finally:
        for holder, name, on in changed:
            setattr(holder, name, on)


def verdict_rounding(dtype: torch.dtype, device: torch.device) -> float:
    """What may lie between the logits of two ways of computing them, as a share of the largest."""
    exact = rounding(dtype)
    return max(exact, TF32_ROUNDING) if dtype == torch.float32 and uses_tf32(device) else exact


def _tf32_flags() -> list[tuple[Any, str, Any]]:
    """Where PyTorch keeps TF32 for convolutions, products and the rest, and the value that means it is on."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    if hasattr(cudnn, "conv"):  # from PyTorch 2.9 on; mixing these with the older flags is an error
        return [(holder, "fp32_precision", "tf32") for holder in (cudnn.conv, matmul, cudnn.rnn)]
    return [(holder, "allow_tf32", True) for holder in (cudnn, matmul)]


def has_amx() -> bool:
    """Whether this CPU multiplies tiles of matrices."""
    return _supports("amx_tile")


def _supports(name: str) -> bool:
    """Ask PyTorch, which keeps this to itself; without an answer float32 is the safe one."""
    ask = getattr(torch.cpu, f"_is_{name}_supported", None)
    return ask is not None and bool(ask())


@cache
def _is_amd() -> bool:
    """Whether Linux calls this an AMD CPU; elsewhere nobody is asked."""
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
