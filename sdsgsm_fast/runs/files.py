"""Checksums, and one run at a time in a folder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

CHUNK = 2**20


def sha256_of(path: Path) -> str:
    """Checksum of a file, as `sha256sum` prints it."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder; a lock goes with its process, so none is left behind by a kill.

    Raises
    ------
    ValueError
        If another run holds it.
    """
    with open(folder / ".lock", "ab") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ValueError(f"{folder}: another run is writing here") from error
        yield


def forget_temporaries(folder: Path) -> None:
    """Remove what a killed run left half-written."""
    for pattern in (".*.tmp", "png-*/.*.tmp"):
        for path in folder.glob(pattern):
            path.unlink()
