"""Reads a set again: every byte against its checksum, every image against the model and the data."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..data.images import ImageSet
from ..model.classifier import Classifier
from .adversarial_set import AdversarialSet
from .digests import data_digest, model_digest
from .files import sha256_of
from .manifest import SUMS, Manifest, names_of, read_manifest
from .shards import COUNTS, FLAGS, NUMBERS, Shard, bounds_of, pixels, read

TOLERANCE = 1e-6  # beyond ε, for float32's rounding


@dataclass
class Report:
    """What was found.

    Attributes
    ----------
    problems
        Each in a line; none for a set that is sound.
    checked
        What was looked at, each in a line.
    """

    problems: list[str] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether there are no problems."""
        return not self.problems


def verify(folder: str | Path, *, classifier: Classifier | None = None, data: ImageSet | None = None) -> Report:
    """Look for damage in a set, and judge its images again.

    Parameters
    ----------
    folder
        The set.
    classifier
        The model that was attacked: verdicts are taken again. None leaves that out.
    data
        The clean images: distances and labels are compared. None leaves that out.

    Returns
    -------
    Report
        Problems are reported, not raised.
    """
    report, folder = Report(), Path(folder)
    try:
        manifest = read_manifest(folder)
    except ValueError as error:
        report.problems.append(str(error))
        return report
    _check_sums(folder, manifest, report)
    if report.sound:
        for shard in manifest.shards:
            _check_shard(folder, shard, manifest, report)
        report.checked.append(f"{manifest.total} images in {len(manifest.shards)} shards")
    if report.sound and data is not None:
        _check_data(AdversarialSet(folder), data, report)
    if report.sound and classifier is not None:
        _check_verdicts(AdversarialSet(folder), classifier, report)
    return report


def _check_sums(folder: Path, manifest: Manifest, report: Report) -> None:
    """Every file's bytes, and that the list of checksums is to the byte what it must be."""
    try:
        listed = (folder / SUMS).read_bytes()
    except OSError:
        report.problems.append(f"{SUMS}: missing: the set is not complete; run the same command again")
        return
    lines = listed.decode("ascii", errors="replace").split("\n")
    names = names_of(manifest)
    for name, line in zip(names, [*lines, *[""] * len(names)], strict=False):
        if not (folder / name).is_file():
            report.problems.append(f"{name}: missing")
        elif line != f"{sha256_of(folder / name)}  {name}":
            report.problems.append(f"{name}: not the bytes of which {SUMS} has the checksum")
    if lines[len(names) :] != [""]:
        report.problems.append(f"{SUMS}: expected {len(names)} lines, one for each file")
    report.checked.append(f"checksums of {len(names)} files")


def _check_shard(folder: Path, shard: Shard, manifest: Manifest, report: Report) -> None:
    """That it holds its images, each in its place and in bounds."""
    found, count = read(folder / shard.name), shard.stop - shard.first
    missing = {"images", *COUNTS, *FLAGS, *NUMBERS} - found.keys()
    if missing or any(len(value) != count for value in found.values()):
        report.problems.append(f"{shard.name}: expected {count} rows of every tensor, missing {sorted(missing)}")
        return
    if found["index"].tolist() != manifest.places(shard):
        report.problems.append(f"{shard.name}: its images are not those that belong there")
    lo, hi = bounds_of(folder / shard.name)
    images = pixels(found["images"], (lo, hi))
    if not bool(((images >= lo) & (images <= hi)).all()):
        report.problems.append(f"{shard.name}: pixels outside [{lo:g}, {hi:g}]")
    if bool((found["success"] & found["skipped"]).any()):
        report.problems.append(f"{shard.name}: an image is both skipped and fooled")


def _check_data(adversarial: AdversarialSet, data: ImageSet, report: Report) -> None:
    """Distances from the clean images, and labels."""
    manifest, worst = adversarial.manifest, 0.0
    if data_digest(data) != manifest.data["sha256"]:
        report.problems.append(f"data: not the images that were attacked, {manifest.data['name']}")
        return
    eps, levels = float(manifest.configuration["eps"]), manifest.configuration["levels"]
    for shard in manifest.shards:
        found = adversarial.read(shard.number)
        clean, labels = data.rows(manifest.places(shard))
        if not torch.equal(labels, found["labels"]):
            report.problems.append(f"{shard.name}: labels differ from the data's")
        worst = max(worst, float((found["images"] - clean).abs().max()))
    if levels is None and worst > eps + TOLERANCE:  # an image between levels is taken to one, if need be beyond ε
        report.problems.append(f"images: {worst:.6g} from the clean ones, beyond eps {eps:.6g}")
    report.checked.append(f"distances from {manifest.data['name']}: at most {worst * 255:.4g}/255")


@torch.no_grad()
def _check_verdicts(adversarial: AdversarialSet, classifier: Classifier, report: Report) -> None:
    """Classes by the model, in its own precision, against those that are stored."""
    manifest = adversarial.manifest
    if model_digest(classifier.model) != manifest.model["sha256"]:
        report.problems.append(f"model: not the one that was attacked, {manifest.model['name']}")
        return
    others = 0
    for shard in manifest.shards:
        found = adversarial.read(shard.number)
        device = classifier.device or found["images"].device
        reached = classifier.predicted(found["images"].to(device)).cpu()
        success = (reached != found["labels"]) & ~found["skipped"]
        others += int((success != found["success"]).sum())
    if others:
        report.problems.append(f"verdicts: {others} of {manifest.total} images are judged otherwise now")
    report.checked.append(f"verdicts of {manifest.model['name']} on {manifest.total} images")
