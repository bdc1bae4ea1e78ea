"""The compiled kernels of csrc, on the CPU and on CUDA: tensors in, raw addresses out."""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib
import importlib.util
import json
import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from ..common.numerics import Setting, compute_dtype
from ..common.windows import Windows
from .calls import NORMALIZE, Occlude, Paste, Update, on_device

INTERFACE = 9  # of the compiled modules; raised whenever their functions change

_DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}


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
def _load(kind: str) -> tuple[ModuleType | None, str]:
    """Import a compiled module, "cpu" or "cuda", once; returns it, or None and the reason."""
    name = f"sdsgsm_fast._native_{kind}"
    if importlib.util.find_spec(name) is None:
        return None, build_outcome(kind)
    try:
        if kind == "cpu" and not _openmp_is_loaded():
            return None, "no OpenMP runtime was found"
        module = importlib.import_module(name)
        if getattr(module, "interface", 0) != INTERFACE:
            return None, "the compiled module belongs to another version; install again"
        return module, ""
    except (ImportError, OSError, TypeError) as error:  # TypeError: ctypes.CDLL(None) on Windows
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


def why_missing(kind: str) -> str:
    """Why the kernels of a kind, "cpu" or "cuda", cannot be used; empty where they can."""
    reason = _load(kind)[1]
    if not reason and kind == "cuda" and not torch.cuda.is_available():
        return "no CUDA device"
    return reason


def isa() -> str:
    """Name of the CPU's instruction set in use."""
    return str(_module("cpu").isa())


def device_kind(tensor: Tensor) -> str:
    """The kind of kernels that takes a tensor: "cpu", "cuda", or "" for none."""
    return "cpu" if tensor.is_cpu else "cuda" if tensor.is_cuda else ""


def supports(tensor: Tensor) -> bool:
    """Whether there are kernels for tensors of this device."""
    kind = device_kind(tensor)
    return kind != "" and _load(kind)[0] is not None


def _module(kind: str) -> ModuleType:
    module, _ = _load(kind)
    assert module is not None, "chosen only where supports() is true"
    return module


def _where(tensor: Tensor) -> tuple[int, ...]:
    """What a kernel needs besides its arguments: threads, or a device and its stream."""
    if tensor.is_cpu:
        return (torch.get_num_threads(),)
    return tensor.get_device(), torch.cuda.current_stream(tensor.device).cuda_stream


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _setting(value: Setting) -> tuple[int, float]:
    """Split a setting into the address of a tensor (B,) and a number."""
    return (0, value) if isinstance(value, float) else (value.data_ptr(), 0.0)


def update(out: Tensor, momentum_out: Tensor | None, u: Update) -> None:
    """Equations 3 and 5 to 7; see `reference.update`."""
    if out.is_cuda:
        return update_cuda(out, momentum_out, u)
    _run_update(_module("cpu"), out, momentum_out, u, torch.get_num_threads())


def update_cuda(out: Tensor, momentum_out: Tensor | None, u: Update) -> None:
    """Give the kernel what it asks for: 16-byte alignment, float64 all through or nowhere."""
    kernels, where = _module("cuda"), _where(out)
    values, dtype = u.adv[0].numel(), compute_dtype(u.adv)
    scratch = kernels.update_scratch(len(u.adv), values, _DTYPES[u.adv.dtype], where[0])
    partial = out.new_empty(scratch, dtype=torch.float64)
    exact = torch.float64 in (u.adv.dtype, u.grad.dtype)
    ready = replace(
        u,
        adv=_aligned(u.adv),
        images=_aligned(u.images),
        grad=_aligned(u.grad.to(dtype) if exact else u.grad),
        domain=None if u.domain is None else _aligned(u.domain),
        momentum=None if u.momentum is None else _aligned(u.momentum),
    )
    new = _aligned(out)
    new_momentum = None if momentum_out is None else _aligned(momentum_out)
    _run_update(kernels, new, new_momentum, ready, *where, partial.data_ptr())
    if new is not out:
        out.copy_(new)
    if momentum_out is not None and new_momentum is not None and new_momentum is not momentum_out:
        momentum_out.copy_(new_momentum)


def _aligned(tensor: Tensor) -> Tensor:
    return tensor.clone() if tensor.data_ptr() % 16 else tensor


def _run_update(kernels: ModuleType, out: Tensor, momentum_out: Tensor | None, u: Update, *where: int) -> None:
    batch, channels, height, width = u.adv.shape
    lo, hi = u.bounds
    # Spelled out: a generator for each group would double the cost of a small call.
    kernels.update(
        u.adv.data_ptr(), out.data_ptr(), u.images.data_ptr(), u.grad.data_ptr(),
        _address(u.domain), _address(u.momentum), _address(momentum_out), _address(u.active),
        _setting(u.eps), _setting(u.alpha), _setting(u.background),
        batch, channels, height * width, not u.adv.is_contiguous(),
        _DTYPES[u.adv.dtype], _DTYPES[u.grad.dtype],
        u.gain, u.decay, lo, hi, u.sign, NORMALIZE[u.normalize], *where,
    )  # fmt: skip


def _grid(windows: Windows) -> tuple[int, ...]:
    size = (windows.height, windows.width)
    return (*size, *windows.patch, *windows.stride, windows.rows, windows.cols)


def occlude(out: Tensor, o: Occlude) -> None:
    """Zeroed-out, normalised and converted copies in one pass; see `reference.occlude`."""
    constants = [on_device(v, torch.float64, out.device) for v in (o.fill, o.mean, o.std)]
    _module(device_kind(out)).occlude(
        *(o.images.data_ptr(), out.data_ptr(), *(v.data_ptr() for v in constants)),
        *(*o.images.shape[:2], o.first, o.count, _grid(o.windows), not out.is_contiguous()),
        *(_DTYPES[o.images.dtype], _DTYPES[out.dtype], *_where(out)),
    )


def window_mean(out: Tensor, scores: Tensor, windows: Windows) -> None:
    """Equation 2; see `reference.window_mean`."""
    _module(device_kind(out)).window_mean(
        *(scores.data_ptr(), out.data_ptr(), len(scores), _grid(windows), _DTYPES[out.dtype]),
        *_where(out),
    )


def paste(out: Tensor, p: Paste) -> None:
    """Tiles with crops pasted in; see `reference.paste`."""
    crops = p.crops
    crop_size = (0, 0) if crops is None else tuple(crops.shape[2:])
    sizes = (len(out), out.shape[1], *p.clean.shape[2:], *crop_size, *out.shape[2:])
    _module(device_kind(out)).paste(
        *(p.clean.data_ptr(), _address(crops), out.data_ptr()),
        *(t.data_ptr() for t in (p.image, p.row, p.col, p.rows, p.cols)),
        *(sizes, crops is not None and len(crops) == 1, p.pad, _DTYPES[out.dtype], *_where(out)),
    )


def winograd(
    out: Tensor,
    x: Tensor | Paste,
    weight: Tensor,
    bias: Tensor | None,
    other: Tensor | Paste | None,
    padding: tuple[int, int],
    relu: bool,
) -> None:
    """relu(3×3 convolution of x + bias + other), channels_last on the CPU.

    All in float32; or, where `winograd_in_bfloat16`, all in bfloat16 but for the bias. `weight` is
    that of `engine.winograd.pack`. Tiles are put together as they are read, with zeros beyond the
    border.
    """
    sizes = (len(out), x.shape[1], out.shape[1], *x.shape[2:], *out.shape[2:], *padding)
    _module("cpu").winograd(
        *(_maps(x), weight.data_ptr(), _address(bias), _maps(other), out.data_ptr()),
        *((*sizes, math.isqrt(weight.shape[1])), relu, _DTYPES[out.dtype], torch.get_num_threads()),
    )


def _maps(maps: Tensor | Paste | None) -> tuple[int, ...]:
    """The address of maps; or all that says how tiles are put together."""
    if not isinstance(maps, Paste):
        return (_address(maps),)
    p = maps
    indices = (p.image, p.row, p.col, p.rows, p.cols)
    crop_size = (0, 0) if p.crops is None else p.crops.shape[2:]
    return (
        *(p.clean.data_ptr(), _address(p.crops), *(t.data_ptr() for t in indices)),
        *(*p.clean.shape[1:], *crop_size, p.height, p.width),
        int(p.crops is not None and len(p.crops) == 1),
    )


def winograd_pack(out: Tensor, weight: Tensor) -> None:
    """Weights (K, C, 3, 3), float32 and contiguous, as `winograd` takes them."""
    _module("cpu").winograd_pack(
        *(weight.data_ptr(), out.data_ptr(), *weight.shape[:2]),
        *(math.isqrt(out.shape[1]), _DTYPES[out.dtype], torch.get_num_threads()),
    )


def winograd_in_bfloat16() -> bool:
    """Whether this CPU has products of bfloat16 and the kernels are built with them."""
    return bool(_module("cpu").winograd_in_bfloat16())
