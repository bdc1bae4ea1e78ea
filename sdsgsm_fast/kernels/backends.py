"""The implementations of the operators and the choice between them."""

from __future__ import annotations

from types import ModuleType

from torch import Tensor

from ..common import checks
from . import native, reference, triton

NAMES = ("auto", "reference", "native", "triton")

_KERNELS: dict[str, ModuleType] = {"native": native, "triton": triton}


def choose(backend: str, tensor: Tensor) -> ModuleType:
    """Return the backend module for `tensor`.

    "auto" takes the kernels of the tensor's device where they are there and take it: native on the
    CPU; Triton on CUDA, and native where Triton does not; else the reference.

    Raises
    ------
    ValueError
        If `backend` is not a known name, or does not take tensors like `tensor`.
    RuntimeError
        If the backend is missing from this installation; the message gives the reason.
    """
    if backend == "auto":
        # On CUDA Triton comes first until both have been measured against each other.
        if tensor.is_cuda and triton.supports(tensor):
            return triton
        return native if native.supports(tensor) else reference
    checks.choice("backend", backend, NAMES)
    if backend == "reference":
        return reference
    kernels = _KERNELS[backend]
    kind = native.device_kind(tensor) or "cpu"
    if reason := native.why_missing(kind) if backend == "native" else triton.why_missing():
        raise RuntimeError(f"backend: {backend!r} is missing: {reason}")
    if not kernels.supports(tensor):
        found = f"{tensor.dtype} on {tensor.device}"
        raise ValueError(f"backend: {backend!r} does not take {found}; pass 'auto'")
    return kernels


def report() -> dict[str, str]:
    """Tell for each backend whether it is there, or why it is not."""
    return {
        "reference": "available",
        "native (CPU)": native.why_missing("cpu") or f"available, using {native.isa()}",
        "native (CUDA)": native.why_missing("cuda") or "available",
        "triton": triton.why_missing() or "available",
    }
