"""Reads a set again: every byte against its checksum, every image against the model and the data."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..data.images import ImageSet
from ..model.classifier import Classifier
from .digests import model_digest
from .files import sha256_of
from .kinds import ATTACK
from .manifest import SUMS, Manifest, names_of, read_manifest
from .occluding import OcclusionJob
from .sets import StoredSet, load, same_data
from .shards import Shard, bounds_of, pixels, read

TOLERANCE = 1e-6  # beyond ε, for float32's rounding
MAP_TOLERANCE = 1e-3  # of the largest score, for what another machine or batch rounds otherwise
REDUCED_TOLERANCE = 0.1  # the same in bfloat16


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
        The model that was asked: an attack's verdicts are taken again. None leaves that out.
    data
        The clean images: labels, and an attack's distances, are compared. None leaves that out.
        With `classifier` too, the first map of each shard of occlusion maps is computed again.

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
    if report.sound and (data is not None or classifier is not None):
        _judge(load(folder), classifier, data, report)
    return report


def _judge(stored: StoredSet, classifier: Classifier | None, data: ImageSet | None, report: Report) -> None:
    """What model and data say of the set, as far as they are there and the right ones."""
    manifest = stored.manifest
    if data is not None and not same_data(data, stored):
        report.problems.append(f"data: not the images that were taken, {manifest.data['name']}")
        data = None
    if classifier is not None and model_digest(classifier.model) != manifest.model["sha256"]:
        report.problems.append(f"model: not the one that was asked, {manifest.model['name']}")
        classifier = None
    if data is not None:
        _check_data(stored, data, report)
    if classifier is not None and manifest.kind == ATTACK:
        _check_verdicts(stored, classifier, report)
    elif classifier is not None and data is not None:
        _check_maps(stored, classifier, data, report)


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
    found, count = read(folder / shard.name), len(shard)
    kind = manifest.kind
    missing = {kind.stored, *kind.columns} - found.keys()
    if missing or any(len(value) != count for value in found.values()):
        report.problems.append(f"{shard.name}: expected {count} rows of every tensor, missing {sorted(missing)}")
        return
    if found["index"].tolist() != manifest.places(shard):
        report.problems.append(f"{shard.name}: its images are not those that belong there")
    if kind == ATTACK:
        _check_pixels(found, bounds_of(folder / shard.name), shard, report)
    elif not bool(found["maps"].isfinite().all()):
        report.problems.append(f"{shard.name}: values that are not finite")


def _check_pixels(found: dict[str, Tensor], bounds: tuple[float, float], shard: Shard, report: Report) -> None:
    """That adversarial images are images."""
    lo, hi = bounds
    images = pixels(found["images"], bounds)
    if not bool(((images >= lo) & (images <= hi)).all()):
        report.problems.append(f"{shard.name}: pixels outside [{lo:g}, {hi:g}]")
    if bool((found["success"] & found["skipped"]).any()):
        report.problems.append(f"{shard.name}: an image is both skipped and fooled")


def _check_data(stored: StoredSet, data: ImageSet, report: Report) -> None:
    """Labels, and how far an attack's images are from the clean ones."""
    manifest, farthest = stored.manifest, 0.0
    for shard in manifest.shards:
        found = stored.read(shard.number)
        clean, labels = data.rows(manifest.places(shard))
        if not torch.equal(labels, found["labels"]):
            report.problems.append(f"{shard.name}: labels differ from the data's")
        if manifest.kind == ATTACK:
            farthest = max(farthest, float((found["images"] - clean).abs().max()))
    if manifest.kind != ATTACK:
        report.checked.append(f"labels of {manifest.data['name']}")
        return
    eps, levels = float(manifest.configuration["eps"]), manifest.configuration["levels"]
    if levels is None and farthest > eps + TOLERANCE:  # an image between levels is taken to one, if need be beyond ε
        report.problems.append(f"images: {farthest:.6g} from the clean ones, beyond eps {eps:.6g}")
    report.checked.append(f"labels and distances from {manifest.data['name']}: at most {farthest * 255:.4g}/255")


@torch.no_grad()
def _check_verdicts(stored: StoredSet, classifier: Classifier, report: Report) -> None:
    """Classes by the model, in its own precision, against those that are stored."""
    manifest, others = stored.manifest, 0
    for shard in manifest.shards:
        found = stored.read(shard.number)
        device = classifier.device or found["images"].device
        reached = classifier.predicted(found["images"].to(device)).cpu()
        success = (reached != found["labels"]) & ~found["skipped"]
        others += int((success != found["success"]).sum())
    if others:
        report.problems.append(f"verdicts: {others} of {manifest.total} images are judged otherwise now")
    report.checked.append(f"verdicts of {manifest.model['name']} on {manifest.total} images")


def _check_maps(stored: StoredSet, classifier: Classifier, data: ImageSet, report: Report) -> None:
    """Compute the first map of each shard again."""
    manifest = stored.manifest
    given = {k: v for k, v in manifest.configuration.items() if k not in ("target", "keep", "png")}
    given |= {"mean": classifier.mean, "std": classifier.std}
    job = OcclusionJob(classifier.model, manifest.configuration["target"], given, ())
    share = REDUCED_TOLERANCE if given["precision"] == "bfloat16" else MAP_TOLERANCE
    for shard in manifest.shards:
        places = manifest.places(shard)[:1]
        images, labels = data.rows(places)
        device = classifier.device or images.device
        again = job.tensors(images.to(device), labels.to(device), places)["maps"]
        found = stored.read(shard.number)["maps"][:1]
        if float((again - found).abs().max()) > share * float(found.abs().max()) + TOLERANCE:
            report.problems.append(f"{shard.name}: its first map comes out otherwise now")
    report.checked.append(f"maps of {manifest.model['name']}: the first of each of {len(manifest.shards)} shards")
