"""A run: every shard that is missing or damaged is made, then the set is closed."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, is_dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from ..attack import Attack, Settings
from ..common import checks
from ..common.files import write_bytes, write_json
from ..common.progress import Progress
from ..data.images import ImageSet
from ..gradients import Diversity
from . import digests
from .files import forget_temporaries, locked
from .manifest import MANIFEST, SUMMARY, SUMS, TABLE, Manifest, finished, names_of, note, read_manifest, sums_of
from .ranks import Alone, Ranks, team
from .shards import Shard, serialized, tensors_of
from .summary import csv_bytes, summary_of

MOST_IMAGES = 1024  # of a shard
MOST_BYTES = 2**28  # of a shard's images
KEPT = ("domain", "scores")
UNRECORDED = ("progress",)  # settings that say nothing of the result


class RunStopped(KeyboardInterrupt):
    """The run was asked to stop and did, after a shard; the same call again goes on."""


def attack_dataset(
    attack: Attack,
    data: ImageSet,
    out: str | Path,
    *,
    limit: int | None = None,
    shard_size: int | None = None,
    keep: tuple[str, ...] = (),
    model_name: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Attack a data set into a folder of shards; called again it goes on where it was stopped.

    Each shard is attacked by itself, so that it is the same whatever happened before, and is on the
    disk before the next begins. Under torchrun every rank calls this, with the folder on a disk
    that all of them have; they take shards from a common list.

    Parameters
    ----------
    attack
        An attack with its model. Its settings are numbers for all images, and a `seed` where it
        draws random numbers.
    data
        Images as `images.load` gives them, in [0, 1].
    out
        The folder: new, empty, or that of the same run.
    limit
        So many images, evenly chosen; None for all.
    shard_size
        Images of a shard; None for 1024, or fewer where those take more than 256 MB.
    keep
        "domain" and "scores": what to store besides images, labels, verdicts and counts.
    model_name
        For the manifest; None for the class's.
    progress
        A callback ``progress("images", done, total)``.

    Returns
    -------
    dict
        The summary, as in summary.json.

    Raises
    ------
    ValueError
        If the folder holds another set; the message says what differs. If another run is writing
        there, or a setting cannot be written down.
    OSError
        If the disk is full or the folder cannot be written. What is finished stays.
    RunStopped
        After the first Ctrl-C, once the shard that was under way is finished; a second one stops at
        once.
    """
    for name in keep:
        checks.choice("keep", name, KEPT)
    if limit is not None:
        checks.integer("limit", limit, 1)
    if attack.bounds != (0.0, 1.0):
        raise ValueError(f"bounds: images of a data set lie in [0, 1], the attack's in {list(attack.bounds)}")
    total = len(data) if limit is None else min(limit, len(data))
    if not total:
        raise ValueError(f"{data.name}: holds no images")
    if shard_size is None:
        shard_size = max(1, min(MOST_IMAGES, MOST_BYTES // data.rows([0])[0].nbytes))
    checks.integer("shard_size", shard_size, 1)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    mine = team()
    with locked(folder) if mine.leads else nullcontext():
        manifest = _manifest(attack, data, total, shard_size, keep, model_name)
        missing = mine.share(lambda: _begun(folder, manifest))
        complete = _make_shards(attack, data, manifest, folder, keep, progress, mine, missing)
        summary = mine.close((lambda: _close(manifest, folder)) if complete else None)
    if summary is None:
        raise RunStopped
    return summary


def _begun(folder: Path, manifest: Manifest) -> list[int]:
    """Begin a set or go on with it; the numbers of the shards to be made."""
    _agree(folder, manifest)
    forget_temporaries(folder)
    return [shard.number for shard in manifest.shards if not finished(folder, shard)]


def _manifest(
    attack: Attack, data: ImageSet, total: int, shard_size: int, keep: tuple[str, ...], model_name: str | None
) -> Manifest:
    model = attack.classifier.model
    return Manifest(
        configuration={"attack": type(attack).__name__, **settings_of(attack), "keep": list(keep)},
        model={"name": model_name or type(model).__qualname__, "sha256": digests.model_digest(model)},
        data={"name": data.name, "sha256": digests.data_digest(data), "images": len(data)},
        total=total, shard_size=shard_size, classes=None if data.classes is None else list(data.classes),
    )  # fmt: skip


def settings_of(attack: Attack) -> dict[str, Any]:
    """An attack's settings as JSON has them.

    Raises
    ------
    ValueError
        If one is a tensor or a function, which cannot be written down, or random numbers have no
        seed.
    """
    draws = attack.random_start or attack.loss == "jitter" or any(isinstance(e, Diversity) for e in attack.gradient)
    if draws and attack.seed is None:
        raise ValueError("seed: a run that draws random numbers needs one, to be the same when it is resumed")
    classifier = attack.classifier
    found = {}
    for name in Settings.__annotations__:
        if name not in UNRECORDED:
            holder = classifier if name in ("mean", "std", "precision") else attack
            found[name] = _plain(name, getattr(holder, name))
    return found


def _plain(name: str, value: Any) -> Any:
    """A setting as JSON has it."""
    if isinstance(value, Tensor) or (callable(value) and not is_dataclass(value)):
        raise ValueError(f"{name}: a run takes numbers and the package's own objects, found {type(value).__name__}")
    if is_dataclass(value) and not isinstance(value, type):
        return {"kind": type(value).__name__, **{k: _plain(f"{name}.{k}", v) for k, v in asdict(value).items()}}
    if isinstance(value, (list, tuple)):
        return [_plain(name, item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _agree(folder: Path, manifest: Manifest) -> None:
    """Begin a set, or see that the folder's is this one."""
    if not (folder / MANIFEST).exists():
        found = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
        if found:
            raise ValueError(f"{folder}: expected an empty folder or one with {MANIFEST}, found {found[0]}")
        manifest.write(folder)
        return
    differences = manifest.differences(read_manifest(folder))
    if differences:
        raise ValueError(f"{folder}: holds another set: {'; '.join(differences)}")


def _make_shards(
    attack: Attack, data: ImageSet, manifest: Manifest, folder: Path, keep: tuple[str, ...],
    progress: Progress | None, mine: Alone | Ranks, missing: list[int],
) -> bool:  # fmt: skip
    """Make shards that nobody else makes; told of is what all have made. False if the set is not complete."""
    shards = manifest.shards
    there = manifest.total - sum(shards[k].stop - shards[k].first for k in missing)

    def told(images: int) -> None:
        if progress and mine.leads:
            progress("images", there + images, manifest.total)

    told(0)
    with _stopping() as stop:
        for number in mine.claims(missing):
            if stop.is_set():
                break
            shard = shards[number]
            content = serialized(*_made(attack, data, shard, manifest.places(shard), keep))
            write_bytes(folder / shard.name, content)
            note(folder, shard, content)
            told(mine.made(shard.stop - shard.first))
        mine.gather(told)
        complete = mine.made(0) + there == manifest.total
        return complete if mine.leads else not stop.is_set()


def _made(
    attack: Attack, data: ImageSet, shard: Shard, places: list[int], keep: tuple[str, ...]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of a shard, and what its file says of itself."""
    images, labels = data.rows(places)
    device = attack.classifier.device or images.device
    images, labels = images.to(device), labels.to(device)
    result = attack.run(images, labels, index=torch.tensor(places))
    reached = attack.classifier.predicted(result.adv)
    tensors = tensors_of(result, labels, reached, attack.levels, keep)
    return tensors, {"first": shard.first, "stop": shard.stop, "bounds": list(attack.bounds)}


def _close(manifest: Manifest, folder: Path) -> dict[str, Any]:
    """Write the summary and the checksums of all; notes of single shards are then of no use."""
    summary = summary_of(folder, manifest)
    write_json(folder / SUMMARY, summary)
    write_bytes(folder / TABLE, csv_bytes(summary))
    write_bytes(folder / SUMS, sums_of(folder, names_of(manifest)))
    for shard in manifest.shards:
        (folder / shard.note).unlink(missing_ok=True)
    return summary


@contextmanager
def _stopping() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; the second one stops at once, as ever."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.getsignal(signal.SIGINT)

    def ask(number: int, frame: FrameType | None) -> None:
        asked.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)
