"""The manifest of a set, its checksums, and whether a folder holds what a run wants to continue."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.files import json_bytes, write_bytes, write_json
from .files import sha256_of
from .kinds import KINDS, Kind
from .png import png_names
from .shards import Shard, shards_of

FORMAT = 1
MANIFEST, SUMMARY, TABLE, SUMS = "manifest.json", "summary.json", "summary.csv", "SHA256SUMS"


@dataclass(frozen=True)
class Manifest:
    """What a set is: enough to make it again, and to tell whether it is being made of the same.

    Attributes
    ----------
    kind
        Of the set.
    configuration
        The settings of the attack or of the maps, and those of the run, as JSON has them.
    model, data
        Name and digest of each, and the data's number of images.
    total, shard_size
        Images of the set, evenly chosen from the data, and images of a shard.
    classes
        Names of the classes, or None.
    """

    kind: Kind
    configuration: dict[str, Any]
    model: dict[str, Any]
    data: dict[str, Any]
    total: int
    shard_size: int
    classes: list[str] | None = None

    @property
    def shards(self) -> list[Shard]:
        """Its shards in their order."""
        return shards_of(self.total, self.shard_size, self.kind.prefix)

    def places(self, shard: Shard) -> list[int]:
        """Places in the data of a shard's images: of every class, also where the data come class by class."""
        source = int(self.data["images"])
        return [i * source // self.total for i in range(shard.first, shard.stop)]

    def files(self, shard: Shard) -> list[str]:
        """Names of a shard's files within the set."""
        return [shard.name, *(png_names(shard, self.places(shard)) if self.configuration.get("png") else [])]

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        digest = hashlib.sha256(json_bytes(self.configuration)).hexdigest()
        return {
            "format": FORMAT, "kind": self.kind.name,
            "configuration": self.configuration, "configuration_sha256": digest, "model": self.model, "data": self.data,
            "images": self.total, "shard_size": self.shard_size,
            "classes": self.classes,
        }  # fmt: skip

    def write(self, folder: Path) -> None:
        """Write it before any shard."""
        write_json(folder / MANIFEST, self.as_dict())

    def differences(self, other: Manifest) -> list[str]:
        """What sets another run apart, in words."""
        if self.kind != other.kind:
            return [f"kind: {other.kind.name} before, {self.kind.name} now"]
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
        if found["format"] != FORMAT or found["kind"] not in KINDS:
            raise ValueError(f"format {found['format']!r} of kind {found['kind']!r} is not known to this version")
        made = Manifest(
            KINDS[found["kind"]], dict(found["configuration"]), dict(found["model"]), dict(found["data"]),
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
    return sorted([MANIFEST, SUMMARY, TABLE, *(name for shard in manifest.shards for name in manifest.files(shard))])


def sums_of(digests: dict[str, str]) -> bytes:
    """Checksums by name as `sha256sum` writes them, so that ``sha256sum -c SHA256SUMS`` checks a set too."""
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items())).encode()


def noted(path: Path) -> dict[str, str]:
    """Checksums that a file lists; none if it is not there or damaged."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return {}
    pairs = (line.partition("  ") for line in lines)
    return {name: digest for digest, _, name in pairs if name}


def close(folder: Path, manifest: Manifest) -> None:
    """Write the checksums of a complete set; notes of single shards are then of no use."""
    digests = noted(folder / SUMS)
    for shard in manifest.shards:
        digests |= noted(folder / shard.note)
    digests |= {name: sha256_of(folder / name) for name in (MANIFEST, SUMMARY, TABLE)}
    write_bytes(
        folder / SUMS, sums_of({name: digests.get(name) or sha256_of(folder / name) for name in names_of(manifest)})
    )
    for shard in manifest.shards:
        (folder / shard.note).unlink(missing_ok=True)


def finished(folder: Path, names: list[str], digests: dict[str, str]) -> bool:
    """Whether all files of a shard are there, with the checksums that were noted when they were written."""
    return all((folder / name).is_file() and sha256_of(folder / name) == digests.get(name) for name in names)


def missing_shards(folder: Path, manifest: Manifest) -> list[int]:
    """Numbers of the shards that are to be made."""
    closed = noted(folder / SUMS)
    return [
        shard.number for shard in manifest.shards
        if not finished(folder, manifest.files(shard), closed | noted(folder / shard.note))
    ]  # fmt: skip


def note(folder: Path, shard: Shard, files: dict[str, bytes]) -> None:
    """Note the checksums of a shard's files, once they are on the disk."""
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    write_bytes(folder / shard.note, sums_of(digests))
