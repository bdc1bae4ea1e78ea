"""Files of a set: a slice of the data set's images each, and what is known of every one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common.optional import require


@dataclass(frozen=True)
class Shard:
    """Images first … stop − 1 of a set.

    Attributes
    ----------
    prefix, number
        Of its name; numbers are from 0 on.
    first, stop
        Places in the set.
    """

    prefix: str
    number: int
    first: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.first

    @property
    def stem(self) -> str:
        """Its name."""
        return f"{self.prefix}-{self.number:05d}"

    @property
    def name(self) -> str:
        """Its file."""
        return f"{self.stem}.safetensors"

    @property
    def note(self) -> str:
        """A file with its checksums, until the set is complete."""
        return f"{self.stem}.sha256"


def shards_of(total: int, size: int, prefix: str) -> list[Shard]:
    """Slices of `size` images; the last may be shorter."""
    starts = range(0, total, size)
    return [Shard(prefix, number, at, min(at + size, total)) for number, at in enumerate(starts)]


def as_bytes(images: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Images in 8 bits."""
    lo, hi = bounds
    return ((images - lo) / (hi - lo) * 255).round().to(torch.uint8)


def pixels(stored: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Images as the model was judged on them, float32, of what a shard stores."""
    if stored.dtype != torch.uint8:
        return stored
    lo, hi = bounds
    return stored.float() / 255 * (hi - lo) + lo


def serialized(tensors: dict[str, Tensor], about: dict[str, Any]) -> bytes:
    """A shard's file, the same bytes for the same content."""
    content: bytes = _package("safetensors.torch").save(tensors, metadata={"about": json.dumps(about, sort_keys=True)})
    return content


def read(path: Path, names: tuple[str, ...] | None = None) -> dict[str, Tensor]:
    """Tensors of a shard, all or some.

    Raises
    ------
    ValueError
        If the file is damaged, or lacks one of them.
    """
    with _opened(path) as file:
        wanted = tuple(file.keys()) if names is None else names
        return {name: file.get_tensor(name) for name in wanted}


def read_rows(path: Path, names: tuple[str, ...], rows: list[int]) -> dict[str, Tensor]:
    """Some rows of some tensors of a shard, in ascending order; no others are read. Errors as of `read`."""
    with _opened(path) as file:
        parts = {name: file.get_slice(name) for name in names}
        return {name: torch.cat([part[row : row + 1] for row in rows]) for name, part in parts.items()}


def bounds_of(path: Path) -> tuple[float, float]:
    """(lo, hi) of the pixels of a shard; errors as of `read`."""
    with _opened(path) as file:
        lo, hi = json.loads((file.metadata() or {})["about"])["bounds"]
        return float(lo), float(hi)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A shard's file; whatever is wrong with it is a ValueError that names it."""
    package = _package("safetensors")
    try:
        with package.safe_open(path, framework="pt") as file:
            yield file
    except (package.SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: no readable shard: {error}") from error


def _package(name: str) -> Any:
    return require(name, extra="cli", purpose="data-set runs")
