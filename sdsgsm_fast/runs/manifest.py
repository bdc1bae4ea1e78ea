"""The manifest of a set, its checksums, and whether a folder holds what a run wants to continue."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.files import json_bytes, write_bytes, write_json
from .files import sha256_of
from .shards import Shard, shards_of

FORMAT = 1
MANIFEST, SUMMARY, TABLE, SUMS = "manifest.json", "summary.json", "summary.csv", "SHA256SUMS"


@dataclass(frozen=True)
class Manifest:
    """What a set is: enough to make it again, and to tell whether it is being made of the same.

    Attributes
    ----------
    configuration
        The attack's class and settings, and those of the run, as JSON has them.
    model, data
        Name and digest of each, and the data's number of images.
    total, shard_size
        Images of the set, evenly chosen from the data, and images of a shard.
    classes
        Names of the classes, or None.
    """

    configuration: dict[str, Any]
    model: dict[str, Any]
    data: dict[str, Any]
    total: int
    shard_size: int
    classes: list[str] | None = None

    @property
    def shards(self) -> list[Shard]:
        """Its shards in their order."""
        return shards_of(self.total, self.shard_size)

    def places(self, shard: Shard) -> list[int]:
        """Places in the data of a shard's images: of every class, also where the data come class by class."""
        source = int(self.data["images"])
        return [i * source // self.total for i in range(shard.first, shard.stop)]

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        digest = hashlib.sha256(json_bytes(self.configuration)).hexdigest()
        return {
            "format": FORMAT, "kind": "attack", "configuration": self.configuration, "configuration_sha256": digest,
            "model": self.model, "data": self.data, "images": self.total, "shard_size": self.shard_size,
            "classes": self.classes,
        }  # fmt: skip

    def write(self, folder: Path) -> None:
        """Write it before any shard."""
        write_json(folder / MANIFEST, self.as_dict())

    def differences(self, other: Manifest) -> list[str]:
        """What sets another run apart, in words."""
        mine, others = self.configuration, other.configuration
        found = [
            f"{name}: {others.get(name)!r} before, {mine.get(name)!r} now"
            for name in sorted({*mine, *others}) if mine.get(name) != others.get(name)
        ]  # fmt: skip
        for what, a, b in (("model", self.model, other.model), ("data", self.data, other.data)):
            if a["sha256"] != b["sha256"]:
                found.append(f"{what}: {b['name']} before, {a['name']} now, with another content")
        for what, a_, b_ in (("images", self.total, other.total), ("shard size", self.shard_size, other.shard_size)):
            if a_ != b_:
                found.append(f"{what}: {b_} before, {a_} now")
        return found


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder.

    Raises
    ------
    ValueError
        If there is none, or it is damaged.
    """
    path = folder / MANIFEST
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] != FORMAT or found["kind"] != "attack":
            raise ValueError(f"format {found['format']!r} of kind {found['kind']!r} is not known to this version")
        made = Manifest(
            dict(found["configuration"]), dict(found["model"]), dict(found["data"]),
            int(found["images"]), int(found["shard_size"]), found["classes"],
        )  # fmt: skip
        if made.as_dict() != found or not 0 < made.total <= made.data["images"] or made.shard_size < 1:
            raise ValueError("it does not fit together")
    except FileNotFoundError as error:
        raise ValueError(f"{folder}: holds no {MANIFEST}") from error
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: damaged: {error}") from error
    return made


def names_of(manifest: Manifest) -> list[str]:
    """Files of a complete set, but for their checksums."""
    return sorted([MANIFEST, SUMMARY, TABLE, *(shard.name for shard in manifest.shards)])


def sums_of(folder: Path, names: list[str]) -> bytes:
    """Checksums of files as `sha256sum` writes them, so that ``sha256sum -c SHA256SUMS`` checks a set too."""
    return "".join(f"{sha256_of(folder / name)}  {name}\n" for name in names).encode()


def finished(folder: Path, shard: Shard) -> bool:
    """Whether a shard is there, with the checksum that was noted when it was written."""
    path, noted = folder / shard.name, _noted(folder, shard)
    return noted is not None and path.is_file() and sha256_of(path) == noted


def note(folder: Path, shard: Shard, content: bytes) -> None:
    """Note a shard's checksum, once it is on the disk."""
    write_bytes(folder / shard.note, f"{hashlib.sha256(content).hexdigest()}  {shard.name}\n".encode())


def _noted(folder: Path, shard: Shard) -> str | None:
    """The checksum of a shard: of its own note, or of the complete set's."""
    for name in (shard.note, SUMS):
        try:
            lines = (folder / name).read_text(encoding="ascii").splitlines()
        except (OSError, ValueError):
            continue
        for line in lines:
            digest, _, file = line.partition("  ")
            if file == shard.name:
                return digest
    return None
