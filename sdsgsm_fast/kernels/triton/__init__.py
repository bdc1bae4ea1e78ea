"""The Triton kernels: CUDA tensors, or CPU tensors under Triton's interpreter.

Triton is imported when a kernel is first asked for. Whether the interpreter runs is decided then,
by ``TRITON_INTERPRET=1``.
"""

from __future__ import annotations

import importlib
import os
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from ...common.windows import Windows
from ..calls import Occlude, Paste, Update


@cache
def _load() -> tuple[dict[str, ModuleType], str]:
    """Import the kernels once; returns them by name, or nothing and the reason."""
    try:
        names = ("update", "occlude", "window_mean", "paste")
        return {name: importlib.import_module(f"{__name__}.{name}_kernel") for name in names}, ""
    except ImportError as error:
        return {}, f"Triton cannot be imported: {error}; pip install 'sdsgsm-fast[gpu]'"


def interpreted() -> bool:
    """Whether the kernels run in Triton's interpreter, which takes CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def why_missing() -> str:
    """Why the kernels cannot be used; empty where they can."""
    if not interpreted() and not torch.cuda.is_available():
        return "no CUDA device (CPU tensors need TRITON_INTERPRET=1)"
    return _load()[1]


def supports(tensor: Tensor) -> bool:
    """Whether the kernels take tensors of this device and dtype."""
    there = tensor.is_cuda or (interpreted() and tensor.device.type == "cpu")
    return there and tensor.dtype != torch.float64 and not _load()[1]


def update(out: Tensor, momentum_out: Tensor | None, u: Update) -> None:
    """Equations 3 and 5 to 7; see `reference.update`."""
    with torch.cuda.device_of(out):  # of a CPU tensor: changes nothing
        _load()[0]["update"].launch(out, momentum_out, u)


def occlude(out: Tensor, o: Occlude) -> None:
    """Zeroed-out, normalised and converted copies; see `reference.occlude`."""
    with torch.cuda.device_of(out):
        _load()[0]["occlude"].launch(out, o)


def window_mean(out: Tensor, scores: Tensor, windows: Windows) -> None:
    """Equation 2; see `reference.window_mean`."""
    with torch.cuda.device_of(out):
        _load()[0]["window_mean"].launch(out, scores, windows)


def paste(out: Tensor, p: Paste) -> None:
    """Tiles with crops pasted in; see `reference.paste`."""
    with torch.cuda.device_of(out):
        _load()[0]["paste"].launch(out, p)
