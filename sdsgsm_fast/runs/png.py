"""Adversarial images as PNG files, a folder a shard."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch import Tensor

from ..common.files import write_bytes
from ..common.optional import require
from .shards import Shard

WRITERS = 8  # threads, most of which wait for the disk


def png_names(shard: Shard, places: list[int]) -> list[str]:
    """Names within the set, one an image, by its place in the data."""
    return [f"png-{shard.number:05d}/{place:08d}.png" for place in places]


def write_pngs(folder: Path, names: list[str], images: Tensor) -> Iterator[tuple[str, bytes]]:
    """Write images (n, C, H, W) uint8, C 1 or 3; yields what each file holds, once all are on the disk."""

    def write(name: str, image: Tensor) -> tuple[str, bytes]:
        content = encoded(image)
        write_bytes(folder / name, content)
        return name, content

    with ThreadPoolExecutor(WRITERS) as pool:
        yield from pool.map(write, names, images)


def encoded(image: Tensor) -> bytes:
    """An image (C, H, W) uint8 as a PNG file."""
    pixels = image[0] if image.shape[0] == 1 else image.permute(1, 2, 0)
    buffer = io.BytesIO()
    require("PIL.Image", extra="cli", purpose="--png").fromarray(pixels.contiguous().numpy()).save(buffer, "PNG")
    return buffer.getvalue()
