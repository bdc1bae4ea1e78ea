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

from ..windows import Windows
from .reference import Setting, compute_dtype

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
        return importlib.import_module("sdsgsm_fast._native_cpu"), ""
    except ModuleNotFoundError:
        return None, _build_outcome()
    except (ImportError, OSError) as error:
        return None, f"the compiled module does not load: {error}"


def _build_outcome() -> str:
    """What the build recorded about the CPU module."""
    report = Path(__file__).parents[1] / "_build_info.json"
    try:
        return str(json.loads(report.read_text())["cpu"])
    except (OSError, ValueError, KeyError):
        return "not built: this is a pure-Python installation"


def why_missing() -> str:
    """Why the kernels cannot be used; empty where they can."""
    return _load()[1]


def isa() -> str:
    """Name of the instruction set in use."""
    return str(_kernels().isa())


def supports(images: Tensor) -> bool:
    """Whether the kernels take tensors of this device and dtype."""
    return images.device.type == "cpu" and images.dtype in _DTYPES and _load()[0] is not None


def _kernels() -> ModuleType:
    module, reason = _load()
    if module is None:
        raise RuntimeError(f"backend: native is missing: {reason}")
    return module


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _setting(value: Setting) -> tuple[Tensor | None, float]:
    """Split a setting into a float64 (B,) tensor, which the caller keeps alive, and a float."""
    return (value.double().contiguous(), 0.0) if isinstance(value, Tensor) else (None, value)


def _layout(adv: Tensor) -> torch.memory_format:
    """Return the layout in which all tensors of an update are given to the kernel."""
    if not adv.is_contiguous() and adv.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def update(
    adv: Tensor,
    images: Tensor,
    grad: Tensor,
    domain: Tensor | None,
    *,
    eps: Setting,
    alpha: Setting,
    background: Setting,
    active: Tensor | None,
    momentum: Tensor | None,
    keep_momentum: bool,
    gain: float,
    decay: float,
    bounds: tuple[float, float],
    sign: float,
    normalize: str,
    in_place: bool,
) -> tuple[Tensor, Tensor | None]:
    """Equations 3 and 5 to 7 in one pass; see `reference.update`."""
    layout, dtype = _layout(adv), compute_dtype(images)
    old, x, g = (t.contiguous(memory_format=layout) for t in (adv, images, grad))
    old_momentum = None if momentum is None else momentum.contiguous(memory_format=layout)
    out = old if in_place else torch.empty_like(old)
    kept = None
    if keep_momentum:
        reuse = in_place and old_momentum is not None
        kept = old_momentum if reuse else torch.empty_like(old, dtype=dtype)
    mask = None if domain is None else domain.contiguous()
    alive = None if active is None else active.contiguous()
    settings = [_setting(value) for value in (eps, alpha, background)]
    batch, channels, height, width = adv.shape
    _kernels().update(
        *(_address(t) for t in (old, out, x, g, mask, old_momentum, kept, alive)),
        *((_address(values), value) for values, value in settings),
        *(batch, channels, height * width, layout == torch.channels_last),
        *(_DTYPES[adv.dtype], _DTYPES[grad.dtype]),
        *(gain, decay, *bounds, sign, _NORMALIZE[normalize], torch.get_num_threads()),
    )
    if not in_place:
        return out, kept
    # The kernel worked on dense copies where the caller's tensors are not dense themselves.
    if out is not adv:
        out = adv.copy_(out)
    if momentum is not None and kept is not None and kept is not momentum:
        kept = momentum.copy_(kept)
    return out, kept


def _grid(windows: Windows) -> tuple[int, ...]:
    size = (windows.height, windows.width)
    return (*size, *windows.patch, *windows.stride, windows.rows, windows.cols)


def occlude(
    images: Tensor,
    windows: Windows,
    first: int,
    count: int,
    *,
    fill: Tensor,
    mean: Tensor,
    std: Tensor,
    dtype: torch.dtype,
    memory_format: torch.memory_format,
) -> Tensor:
    """Zeroed-out, normalised and converted copies in one pass; see `reference.occlude`."""
    images = images.contiguous()
    batch, channels, height, width = images.shape
    shape = (batch * count, channels, height, width)
    out = torch.empty(shape, dtype=dtype, memory_format=memory_format)
    _kernels().occlude(
        *(_address(images), _address(out), fill.tolist(), mean.tolist(), std.tolist()),
        *(batch, channels, first, count, _grid(windows)),
        *(memory_format == torch.channels_last, _DTYPES[images.dtype], _DTYPES[dtype]),
        torch.get_num_threads(),
    )
    return out


def window_mean(scores: Tensor, windows: Windows) -> Tensor:
    """Equation 2; see `reference.window_mean`."""
    kind = compute_dtype(scores)
    given = scores.to(kind).contiguous()
    out = torch.empty((len(scores), windows.height, windows.width), dtype=kind)
    _kernels().window_mean(
        *(_address(given), _address(out), len(scores), _grid(windows), _DTYPES[kind]),
        torch.get_num_threads(),
    )
    return out.to(scores.dtype)
