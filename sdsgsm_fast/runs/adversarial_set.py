"""A finished set as a data set for PyTorch: images as the model was judged on them."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from .manifest import read_manifest
from .shards import bounds_of, pixels, read
from .summary import columns_of


def load(folder: str | Path) -> AdversarialSet:
    """A set that `attack_dataset` has finished.

    Raises
    ------
    ValueError
        If the folder holds none, or a file of it is damaged.
    """
    return AdversarialSet(Path(folder))


class AdversarialSet(Dataset[tuple[Tensor, int]]):
    """`set[i]` is an adversarial image (C, H, W) float32 and its true label; read as it is asked for.

    Attributes
    ----------
    folder, manifest
        Where it is, and how it was made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.manifest = folder, read_manifest(folder)
        for shard in self.manifest.shards:
            if not (folder / shard.name).is_file():
                raise ValueError(f"{folder}: {shard.name} is missing; run the same attack again to finish the set")
        self._shard: tuple[int, dict[str, Tensor], tuple[float, float]] | None = None  # the last that was read

    def __len__(self) -> int:
        return self.manifest.total

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        number, row = divmod(index % len(self), self.manifest.shard_size)
        if self._shard is None or self._shard[0] != number:
            path = self.folder / self.manifest.shards[number].name
            self._shard = number, read(path, ("images", "labels")), bounds_of(path)
        _, tensors, bounds = self._shard
        return pixels(tensors["images"][row], bounds), int(tensors["labels"][row])

    @cached_property
    def columns(self) -> dict[str, Tensor]:
        """What is known of each image, (N,) each: labels, reached, success, skipped, updates, l2 and so on."""
        return columns_of(self.folder, self.manifest)

    def read(self, number: int) -> dict[str, Tensor]:
        """All tensors of a shard, images in float32."""
        path = self.folder / self.manifest.shards[number].name
        found = read(path)
        return {**found, "images": pixels(found["images"], bounds_of(path))}

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what was read: a worker process reads for itself."""
        return vars(self) | {"_shard": None}
