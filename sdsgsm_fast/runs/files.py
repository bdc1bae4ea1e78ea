"""Files that are there whole or not at all, also after a power cut, and one run at a time in a folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

CHUNK = 2**20


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file by way of a temporary one: content and name are on the disk before this returns.

    Raises
    ------
    OSError
        If the disk is full or the folder cannot be written; nothing of the file is left then.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(path.parent)


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole or not at all."""
    write_bytes(path, json_bytes(content))


def json_bytes(content: Any) -> bytes:
    """JSON, the same bytes for the same content."""
    return (json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode()


def _sync_folder(folder: Path) -> None:
    """Have a renamed file's name on the disk, where the system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


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
    for path in folder.glob(".*.tmp"):
        path.unlink()
