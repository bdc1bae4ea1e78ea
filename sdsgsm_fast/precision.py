"""Where bfloat16 is faster than float32."""

from __future__ import annotations

import torch


def bfloat16_pays(device: torch.device) -> bool:
    """Whether convolutions and products gain from bfloat16 on a device.

    On a CPU they do with AMX alone: without it oneDNN's bfloat16 convolutions took up to twice as
    long as float32's (measured on AVX-512 with its bfloat16 instructions). On CUDA it takes tensor
    cores for bfloat16, from compute capability 8.0 on.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # PyTorch keeps these to itself; without them float32 is the safe answer.
    has_tiles = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return device.type == "cpu" and has_tiles is not None and bool(has_tiles())
