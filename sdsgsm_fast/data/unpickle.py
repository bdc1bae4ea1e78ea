"""A reader of CIFAR's pickled batches: arrays, strings, numbers, lists and dictionaries.

It is a small interpreter of its own over pickle's opcodes, so nothing that a file names is called
or imported, and nothing is hashed, compared or printed but short strings.
"""

from __future__ import annotations

import pickletools
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ..common.lines import first_line

MAX_BYTES = 2**30  # of a batch, and of what it makes; CIFAR-100's training batch has 155 million
MAX_NAME = 200  # characters of a key, a module, a dtype
MAX_OPCODES = 5_000_000  # CIFAR-100's training batch has some 300,000

DTYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8", "b1")

KNOWN = {
    ("numpy.core.multiarray", "_reconstruct"): "array",
    ("numpy._core.multiarray", "_reconstruct"): "array",
    ("numpy.core.numeric", "_frombuffer"): "frombuffer",
    ("numpy._core.numeric", "_frombuffer"): "frombuffer",
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("_codecs", "encode"): "encode",
}
"""What a batch may refer to, and what this reader does for it."""

VALUES = (
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8", "BYTEARRAY8",
)  # fmt: skip
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


class RefusedError(ValueError):
    """A pickle holds what no batch has."""


class _Named:
    """Something that a pickle refers to by its name."""

    def __init__(self, what: str) -> None:
        self.what = what


class _Dtype:
    """What a pickled dtype says of itself."""

    def __init__(self, code: Any) -> None:
        self.code, self.order = _text(code), "="

    def numpy(self) -> np.dtype[Any]:
        if self.code not in DTYPES or self.order not in ("<", ">", "=", "|"):
            raise RefusedError(f"an array of {self.code[:20]!r}")
        return np.dtype(self.code).newbyteorder(self.order)  # type: ignore[arg-type]


class _Array:
    """A pickled array, without values until its state comes."""

    values: npt.NDArray[Any] | None = None


_MARK = object()


class _Reader:
    """Pickle's stack machine, for what batches are made of."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.made = 0  # bytes

    def run(self, raw: bytes) -> Any:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(raw)):
            if count > MAX_OPCODES:
                raise RefusedError("it has too many parts")
            name = opcode.name
            if name == "STOP":
                return self.stack.pop()
            self._step(name, argument)
        raise RefusedError("it does not end")

    def _step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in VALUES:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[int(argument)] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[int(argument)])
        elif name == "MARK":
            stack.append(_MARK)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            stack.append(self._named(name, argument))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(self._called(function, arguments))
        elif name == "BUILD":
            state = stack.pop()
            self._build(stack[-1], state)
        elif name not in ("PROTO", "FRAME"):
            self._container(name)

    def _container(self, name: str) -> None:
        stack = self.stack
        if name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"):
            stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[name]())
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            size = int(name[-1])
            parts = tuple(stack[-size:])
            del stack[-size:]
            stack.append(parts)
        elif name == "TUPLE":
            stack.append(tuple(self._marked()))
        elif name == "APPEND":
            item = stack.pop()
            _as(list, stack[-1]).append(item)
        elif name == "APPENDS":
            items = self._marked()
            _as(list, stack[-1]).extend(items)
        elif name == "LIST":
            stack.append(self._marked())
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            _as(dict, stack[-1])[_text(key)] = value
        elif name in ("SETITEMS", "DICT"):
            pairs = self._marked()
            if name == "DICT":
                stack.append({})
            _as(dict, stack[-1]).update({_text(k): v for k, v in zip(pairs[::2], pairs[1::2], strict=True)})
        else:
            raise RefusedError(f"it holds {name.lower()}, which no batch has")

    def _marked(self) -> list[Any]:
        """Take what lies above the last mark."""
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items

    def _named(self, name: str, argument: Any) -> _Named:
        if name == "STACK_GLOBAL":
            attribute, module = _text(self.stack.pop()), _text(self.stack.pop())
        else:
            module, _, attribute = str(argument).partition(" ")
        what = KNOWN.get((module, attribute))
        if what is None:
            raise RefusedError(f"it refers to {module[:60]}.{attribute[:60]}, which is not executed")
        return _Named(what)

    def _called(self, function: Any, arguments: Any) -> Any:
        """What the few functions that batches name would give."""
        what, given = _as(_Named, function).what, _as(tuple, arguments)
        if what == "array":
            return _Array()
        if what == "dtype":
            return _Dtype(given[0])
        if what == "encode":  # bytes, as Python 3 pickles them in protocol 2
            text = _as(str, given[0])
            self._make(len(text))
            return text.encode("latin1")
        if what == "frombuffer":
            raw, dtype, shape, order = given
            made = _Array()
            made.values = self._values(raw, dtype, shape, fortran=order == "F")
            return made
        raise RefusedError(f"it calls {what}")

    def _build(self, made: Any, state: Any) -> None:
        given = _as(tuple, state)
        if isinstance(made, _Dtype):
            made.order = _text(given[1])
        else:
            _, shape, dtype, fortran, raw = given
            _as(_Array, made).values = self._values(raw, dtype, shape, fortran=bool(fortran))

    def _values(self, raw: Any, dtype: Any, shape: Any, *, fortran: bool) -> npt.NDArray[Any]:
        if isinstance(raw, str):  # Python 2's bytes
            self._make(len(raw))
            raw = raw.encode("latin1")
        if isinstance(raw, bytearray):  # protocol 5's
            self._make(len(raw))
            raw = bytes(raw)
        if not isinstance(raw, bytes):
            raise RefusedError("an array of objects")
        sizes = tuple(_as(int, size) for size in _as(tuple, shape))
        return np.frombuffer(raw, _as(_Dtype, dtype).numpy()).reshape(sizes, order="F" if fortran else "C")

    def _make(self, size: int) -> None:
        self.made += size
        if self.made > MAX_BYTES:
            raise RefusedError(f"it makes more than {MAX_BYTES} bytes")


def load_plain(file: BinaryIO, name: str | Path) -> dict[str, Any]:
    """Read a pickled dictionary of arrays, numbers, strings and lists of numbers and strings.

    Raises
    ------
    ValueError
        If it is anything else, or damaged; nothing of it is executed.
    """
    try:
        raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise RefusedError(f"larger than {MAX_BYTES} bytes")
        found = _Reader().run(raw)
    except Exception as error:  # a damaged pickle raises whatever its opcodes run into
        raise ValueError(f"{name}: not a batch of CIFAR in python format: {first_line(error)}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{name}: expected a pickled dictionary, found {type(found).__name__}")
    return {key: value.values if isinstance(value, _Array) else value for key, value in found.items()}


def _as(kind: Any, value: Any) -> Any:
    """A value of a kind."""
    if type(value) is not kind:
        names = (found.__name__.strip("_").lower() for found in (kind, type(value)))
        raise RefusedError("expected {}, found {}".format(*names))
    return value


def _text(value: Any) -> str:
    """A short string, also Python 2's and Python 3's bytes."""
    found: str | bytes = value if isinstance(value, bytes) else _as(str, value)
    if len(found) > MAX_NAME:
        raise RefusedError(f"a name of {len(found)} characters")
    return found.decode("latin1") if isinstance(found, bytes) else found
