"""A finished set as a data set for PyTorch."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from ..data.images import ImageSet
from .digests import data_digest
from .kinds import ATTACK
from .manifest import Manifest, read_manifest
from .shards import bounds_of, pixels, read
from .summary import columns_of


def load(folder: str | Path) -> AdversarialSet | MapSet:
    """A set that `attack_dataset` or `occlude_dataset` has finished.

    Raises
    ------
    ValueError
        If the folder holds none, or a file of it is damaged.
    """
    manifest = read_manifest(Path(folder))
    return (AdversarialSet if manifest.kind == ATTACK else MapSet)(Path(folder), manifest)


def same_data(data: ImageSet, stored: StoredSet) -> bool:
    """Whether a set was made of these images."""
    return bool(data_digest(data) == stored.manifest.data["sha256"])


class StoredSet(Dataset[tuple[Tensor, int]]):
    """`set[i]` is what was made of an image, float32, and its true label; read as it is asked for.

    Attributes
    ----------
    folder, manifest
        Where it is, and how it was made.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        for shard in manifest.shards:
            if not (folder / shard.name).is_file():
                raise ValueError(f"{folder}: {shard.name} is missing; run the same command again to finish the set")
        self._shard: tuple[int, dict[str, Tensor], tuple[float, float]] | None = None  # the last that was read

    def __len__(self) -> int:
        return self.manifest.total

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        stored = self.manifest.kind.stored
        number, row = divmod(index % len(self), self.manifest.shard_size)
        if self._shard is None or self._shard[0] != number:
            path = self.folder / self.manifest.shards[number].name
            self._shard = number, read(path, (stored, "labels")), bounds_of(path)
        _, tensors, bounds = self._shard
        return pixels(tensors[stored][row], bounds), int(tensors["labels"][row])

    @cached_property
    def columns(self) -> dict[str, Tensor]:
        """What is known of each image, (N,) each: labels, index and so on."""
        return columns_of(self.folder, self.manifest)

    def read(self, number: int) -> dict[str, Tensor]:
        """All tensors of a shard, images in float32."""
        path = self.folder / self.manifest.shards[number].name
        found, stored = read(path), self.manifest.kind.stored
        return {**found, stored: pixels(found[stored], bounds_of(path))}

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what was read: a worker process reads for itself."""
        return vars(self) | {"_shard": None}


class AdversarialSet(StoredSet):
    """`set[i]` is an adversarial image (C, H, W), as the model was judged on it, and its true label."""


class MapSet(StoredSet):
    """`set[i]` is an occlusion map (H, W) and the image's true label."""
