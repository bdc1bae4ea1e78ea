"""A reader of CIFAR's pickled batches that executes nothing: arrays, bytes and plain containers."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ..common.lines import first_line

DTYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8", "b1")


class _Dtype:
    """What a pickled dtype says of itself."""

    def __init__(self, code: Any = "", *_: Any) -> None:
        self.code = code.decode() if isinstance(code, bytes) else str(code)
        self.order = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1]
        self.order = order.decode() if isinstance(order, bytes) else str(order)

    def numpy(self) -> np.dtype[Any]:
        if self.code not in DTYPES or self.order not in ("<", ">", "=", "|"):
            raise pickle.UnpicklingError(f"an array of {self.code!r}")
        return np.dtype(self.code).newbyteorder(self.order)  # type: ignore[arg-type]


class _Array:
    """A pickled array: its shape, dtype and bytes, which must fit each other."""

    def __init__(self) -> None:
        self.values: npt.NDArray[Any] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _Dtype) or not isinstance(raw, bytes):
            raise pickle.UnpicklingError("an array of objects")
        flat = np.frombuffer(raw, dtype.numpy())
        self.values = flat.reshape(shape, order="F" if fortran else "C")


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _encode(text: str, encoding: str) -> bytes:
    """Bytes as Python 3 pickles them in protocol 2."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"bytes in {encoding!r}")
    return text.encode("latin1")


ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}, which is not executed") from None

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to objects outside the file")


def load_plain(file: BinaryIO, name: str | Path) -> dict[str, Any]:
    """Read a pickled dictionary of arrays, numbers, strings and lists of them.

    Raises
    ------
    ValueError
        If it is anything else, or damaged; nothing of it is executed.
    """
    try:
        found = _Unpickler(file, encoding="latin1").load()
    except Exception as error:  # a damaged pickle raises whatever its opcodes run into
        raise ValueError(f"{name}: not a batch of CIFAR in python format: {first_line(error)}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{name}: expected a pickled dictionary, found {type(found).__name__}")
    return {
        (k.decode("latin1") if isinstance(k, bytes) else str(k)): v.values if isinstance(v, _Array) else v
        for k, v in found.items()
    }
