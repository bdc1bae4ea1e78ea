"""A run: every shard that is missing or damaged is made, then the set is closed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

from ..common import checks
from ..common.files import write_bytes, write_json
from ..common.progress import Progress
from ..data.images import ImageSet
from . import digests
from .files import forget_temporaries, locked
from .job import Job
from .manifest import MANIFEST, SUMMARY, TABLE, Manifest, close, missing_shards, note, read_manifest
from .png import write_pngs
from .ranks import Alone, Ranks, team
from .shards import Shard, serialized
from .summary import columns_of, csv_bytes, summary_of

MOST_BYTES = 2**28  # of a shard's images


class RunStopped(KeyboardInterrupt):
    """The run was asked to stop and did, after a shard; the same call again goes on."""


def run(
    job: Job,
    data: ImageSet,
    out: str | Path,
    *,
    limit: int | None,
    shard_size: int | None,
    png: bool = False,
    model_name: str | None,
    progress: Progress | None,
) -> dict[str, Any]:
    """Do a job with a whole data set; parameters and errors are those of `attack_dataset`."""
    if limit is not None:
        checks.integer("limit", limit, 1)
    total = len(data) if limit is None else min(limit, len(data))
    if not total:
        raise ValueError(f"{data.name}: holds no images")
    if shard_size is None:
        shard_size = max(1, min(job.kind.most, MOST_BYTES // data.rows([0])[0].nbytes))
    checks.integer("shard_size", shard_size, 1)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    mine = team()
    with locked(folder) if mine.leads else nullcontext():
        manifest = _manifest(job, data, total, shard_size, png, model_name)
        missing = mine.share(lambda: _begun(folder, manifest))
        complete = _make_shards(job, data, manifest, folder, progress, mine, missing)
        summary = mine.close((lambda: _close(manifest, folder)) if complete else None)
    if summary is None:
        raise RunStopped
    return summary


def _begun(folder: Path, manifest: Manifest) -> list[int]:
    """Begin a set or go on with it; the numbers of the shards to be made."""
    _agree(folder, manifest)
    forget_temporaries(folder)
    return missing_shards(folder, manifest)


def _manifest(
    job: Job, data: ImageSet, total: int, shard_size: int, png: bool, model_name: str | None
) -> Manifest:  # fmt: skip
    model = job.classifier.model
    return Manifest(
        kind=job.kind,
        configuration={**job.settings(), "keep": list(job.keep), "png": png},
        model={"name": model_name or type(model).__qualname__, "sha256": digests.model_digest(model)},
        data={"name": data.name, "sha256": digests.data_digest(data), "images": len(data)},
        total=total, shard_size=shard_size, classes=None if data.classes is None else list(data.classes),
    )  # fmt: skip


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
    job: Job, data: ImageSet, manifest: Manifest, folder: Path, progress: Progress | None,
    mine: Alone | Ranks, missing: list[int],
) -> bool:  # fmt: skip
    """Make shards that nobody else makes; told of is what all have made. False if the set is not complete."""
    shards = manifest.shards
    there = manifest.total - sum(len(shards[number]) for number in missing)

    def told(images: int) -> None:
        if progress and mine.leads:
            progress("images", there + images, manifest.total)

    told(0)
    with _stopping() as stop:
        for number in mine.claims(missing):
            if stop.is_set():
                break
            _make(job, data, manifest, folder, shards[number])
            told(mine.made(len(shards[number])))
        mine.gather(told)
        complete = mine.made(0) + there == manifest.total
        return complete if mine.leads else not stop.is_set()


def _make(job: Job, data: ImageSet, manifest: Manifest, folder: Path, shard: Shard) -> None:
    """Make a shard; its checksums are noted last, since they say that all of it is there."""
    places = manifest.places(shard)
    images, labels = data.rows(places)
    device = job.classifier.device or images.device
    tensors = job.tensors(images.to(device), labels.to(device), places)
    content = serialized(tensors, {"first": shard.first, "stop": shard.stop, "bounds": [0.0, 1.0]})
    write_bytes(folder / shard.name, content)
    name, *pngs = manifest.files(shard)
    files = {name: content}
    if pngs:
        files |= write_pngs(folder, pngs, tensors[job.kind.stored])
    note(folder, shard, files)


def _close(manifest: Manifest, folder: Path) -> dict[str, Any]:
    """Write the summary and the checksums of all."""
    summary = summary_of(manifest.kind, columns_of(folder, manifest))
    write_json(folder / SUMMARY, summary)
    write_bytes(folder / TABLE, csv_bytes(summary))
    close(folder, manifest)
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
