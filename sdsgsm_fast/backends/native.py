"""The compiled CPU kernels of csrc: tensors in, raw addresses out."""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib
import json
from functools import cache
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from ..numerics import Setting
from ..windows import Windows
from .calls import Occlude, Update

INTERFACE = 1  # of the compiled module; raised whenever its functions change

_DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
_NORMALIZE = {"none": 0, "mean_abs": 1, "max_abs": 2, "rms": 3}


def _openmp_is_loaded() -> bool:
    """Make sure that the OpenMP symbols resolve: torch's own runtime, or the system's."""
    if hasattr(ctypes.CDLL(None), "GOMP_parallel"):
        return True
    library = ctypes.util.find_library("gomp")
    if library is None:
        return False
    ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
    return hasattr(ctypes.CDLL(None), "GOMP_parallel")


@cache
def _load() -> tuple[ModuleType | None, str]:
    """Import the compiled module once; returns it, or None and the reason."""
    try:
        if not _openmp_is_loaded():
            return None, "no OpenMP runtime was found"
        module = importlib.import_module("sdsgsm_fast._native_cpu")
        if getattr(module, "interface", 0) != INTERFACE:
            return None, "the compiled module belongs to another version; install again"
        return module, ""
    except ModuleNotFoundError:
        return None, build_outcome("cpu")
    except (ImportError, OSError) as error:
        return None, f"the compiled module does not load: {error}"


def build_outcome(module: str) -> str:
    """What the build recorded about a module, "cpu" or "cuda", that cannot be imported."""
    report = Path(__file__).parents[1] / "_build_info.json"
    try:
        outcome = str(json.loads(report.read_text())[module])
    except (OSError, ValueError, KeyError):
        return "not built: this is a pure-Python installation"
    if outcome == "built":
        return f"missing: {report.parent} holds none for this Python; install again"
    return outcome


def why_missing() -> str:
    """Why the kernels cannot be used; empty where they can."""
    return _load()[1]


def isa() -> str:
    """Name of the instruction set in use."""
    return str(_kernels().isa())


def supports(images: Tensor) -> bool:
    """Whether the kernels take tensors of this device."""
    return images.is_cpu and _load()[0] is not None


def _kernels() -> ModuleType:
    module, _ = _load()
    assert module is not None, "chosen only where supports() is true"
    return module


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _setting(value: Setting) -> tuple[int, float]:
    """Split a setting into the address of a tensor (B,) and a number."""
    return (0, value) if isinstance(value, float) else (value.data_ptr(), 0.0)


def update(out: Tensor, momentum_out: Tensor | None, u: Update) -> None:
    """Equations 3 and 5 to 7 in one pass; see `reference.update`."""
    batch, channels, height, width = u.adv.shape
    lo, hi = u.bounds
    # Spelled out: a generator for each group would double the cost of a small call.
    _kernels().update(
        u.adv.data_ptr(), out.data_ptr(), u.images.data_ptr(), u.grad.data_ptr(),
        _address(u.domain), _address(u.momentum), _address(momentum_out), _address(u.active),
        _setting(u.eps), _setting(u.alpha), _setting(u.background),
        batch, channels, height * width, not u.adv.is_contiguous(),
        _DTYPES[u.adv.dtype], _DTYPES[u.grad.dtype],
        u.gain, u.decay, lo, hi, u.sign, _NORMALIZE[u.normalize], torch.get_num_threads(),
    )  # fmt: skip


def _grid(windows: Windows) -> tuple[int, ...]:
    size = (windows.height, windows.width)
    return (*size, *windows.patch, *windows.stride, windows.rows, windows.cols)


def occlude(out: Tensor, o: Occlude) -> None:
    """Zeroed-out, normalised and converted copies in one pass; see `reference.occlude`."""
    _kernels().occlude(
        *(_address(o.images), _address(out), o.fill, o.mean, o.std),
        *(*o.images.shape[:2], o.first, o.count, _grid(o.windows), not out.is_contiguous()),
        *(_DTYPES[o.images.dtype], _DTYPES[out.dtype], torch.get_num_threads()),
    )


def window_mean(out: Tensor, scores: Tensor, windows: Windows) -> None:
    """Equation 2; see `reference.window_mean`."""
    _kernels().window_mean(
        *(_address(scores), _address(out), len(scores), _grid(windows), _DTYPES[out.dtype]),
        torch.get_num_threads(),
    )
