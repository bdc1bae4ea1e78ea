"""The implementations of the operators and the choice between them."""

from __future__ import annotations

from types import ModuleType

from torch import Tensor

from .. import checks
from . import native, reference

NAMES = ("auto", "reference", "native")


def choose(backend: str, tensor: Tensor) -> ModuleType:
    """Return the backend module for `tensor`; "auto" takes native where it can.

    Raises
    ------
    ValueError
        If `backend` is not a known name, or does not take tensors like `tensor`.
    RuntimeError
        If the backend is missing from this installation; the message gives the reason.
    """
    checks.choice("backend", backend, NAMES)
    if backend == "reference":
        return reference
    if backend == "auto":
        return native if native.supports(tensor) else reference
    if reason := native.why_missing():
        raise RuntimeError(f"backend: 'native' is missing: {reason}")
    if not native.supports(tensor):
        raise ValueError(f"backend: 'native' takes tensors on the CPU, found {tensor.device}")
    return native


def report() -> dict[str, str]:
    """Tell for each backend whether it is there, or why it is not."""
    missing = native.why_missing()
    return {
        "reference": "available",
        "native (CPU)": missing or f"available, using {native.isa()}",
        "native (CUDA)": native.build_outcome("cuda"),
    }
