"""Where bfloat16 is faster than float32."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch


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
