"""Import of optional dependencies with an error that says what to install."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import `module`, or raise ModuleNotFoundError naming the extra that provides it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{purpose} needs the package {error.name!r}: pip install 'sdsgsm-fast[{extra}]'",
            name=error.name,
        ) from error
