"""Gathers what a page shows of a set, and writes it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...common import checks
from ...common.files import write_bytes
from ...common.progress import Progress
from ...data.images import ImageSet
from ..kinds import ATTACK
from ..sets import StoredSet, load, same_data
from ..shards import pixels, read_rows
from ..summary import summary_of
from .charts import class_table, histogram
from .page import page_of
from .thumbnails import strips, views_of

GALLERY = 10_000
CHUNK = 256  # images that are read at once


@dataclass(frozen=True)
class Number:
    """A number of each image.

    Attributes
    ----------
    key, name, digits
        In the set, on the page, and after the point.
    drawn, filtered
        Whether it has a histogram, and a range in the gallery's filters.
    """

    key: str
    name: str
    digits: int
    drawn: bool = False
    filtered: bool = False


ATTACKED = (
    Number("l2", "ℓ2", 3, drawn=True, filtered=True), Number("linf", "ℓ∞·255", 2), Number("ssim", "SSIM", 4, drawn=True,
    filtered=True), Number("updates", "updates", 0, drawn=True), Number("passes", "passes", 0),
)  # fmt: skip
EXPLAINED = (
    Number("confidence", "confidence", 3, drawn=True, filtered=True), Number("peak", "peak", 4, drawn=True,
    filtered=True), Number("least", "least", 4, drawn=True),
)  # fmt: skip


def write_report(
    folder: str | Path,
    out: str | Path | None = None,
    *,
    data: ImageSet | None = None,
    gallery: int = GALLERY,
    progress: Progress | None = None,
) -> Path:
    """Write a page of a finished set: one HTML file that loads nothing else.

    Parameters
    ----------
    folder
        The set.
    out
        The page's file; None for report.html in the folder.
    data
        The clean images, for the views "clean" and "perturbation"; None leaves them out.
    gallery
        Images of the gallery at most, evenly chosen; figures are of all.
    progress
        A callback ``progress("pictures", done, total)``.

    Returns
    -------
    Path
        Of the page.

    Raises
    ------
    ValueError
        If there is no finished set, a file of it is damaged, or `data` are other images than those
        of the set.
    OSError
        If the page cannot be written; an older one is then left as it was.
    """
    checks.integer("gallery", gallery, 1)
    stored = load(folder)
    if data is not None and not same_data(data, stored):
        raise ValueError(f"data: not the images of this set, {stored.manifest.data['name']}")
    columns = _columns(stored)
    count = min(gallery, len(stored))
    places = [i * len(stored) // count for i in range(count)]
    names, pictures = _pictures(stored, places, data, progress)
    numbers = ATTACKED if stored.manifest.kind == ATTACK else EXPLAINED
    classes = _class_names(stored, columns)
    other = "reached class" if stored.manifest.kind == ATTACK else "predicted class"
    shown = torch.tensor(places)
    page = page_of(
        title=_title(stored), about=_about(stored), summary=summary_of(stored.manifest.kind, stored.columns),
        figures=[histogram(n.name, _drawn(columns, n.key), n.digits) for n in numbers if n.drawn],
        table=class_table(_drawn(columns, "true"), _drawn(columns, "other"), classes, other),
        gallery={
            "views": names, "classes": classes, "other": other, "results": _results(stored),
            "numbers": [{"key": n.key, "name": n.name, "digits": n.digits, "filtered": n.filtered} for n in numbers],
            "columns": {key: _rounded(columns[key][shown], key, numbers) for key in _keys(numbers)},
            "strips": pictures, "of": len(stored),
        },
    )  # fmt: skip
    path = stored.folder / "report.html" if out is None else Path(out)
    write_bytes(path, page.encode())
    return path


def _columns(stored: StoredSet) -> dict[str, Tensor]:
    """What is known of each image, under the names of a page; 0-based codes of `_results`."""
    found = dict(stored.columns)
    if stored.manifest.kind == ATTACK:
        found["result"] = torch.where(found["skipped"], 2, torch.where(found["success"], 0, 1))
        found["passes"] = found["forward"] + found["backward"]
        found["linf"] = found["linf"] * 255
        found["other"] = found["reached"]
    else:
        found["result"] = (found["predicted"] != found["labels"]).long()
        found["other"] = found["predicted"]
    found["true"] = found["labels"]
    return found


def _results(stored: StoredSet) -> list[str]:
    return ["fooled", "not fooled", "skipped"] if stored.manifest.kind == ATTACK else ["right", "wrong"]


def _drawn(columns: dict[str, Tensor], key: str) -> Tensor:
    """A number's values, without images that were not attacked."""
    return columns[key][~columns["skipped"]] if "skipped" in columns else columns[key]


def _keys(numbers: tuple[Number, ...]) -> list[str]:
    return ["index", "true", "other", "result", *(n.key for n in numbers)]


def _rounded(values: Tensor, key: str, numbers: tuple[Number, ...]) -> list[float | int | None]:
    """Numbers as the page shows them; None for NaN."""
    digits = next((n.digits for n in numbers if n.key == key), 0)
    return [None if v != v else round(v, digits) if digits else int(v) for v in values.tolist()]


def _class_names(stored: StoredSet, columns: dict[str, Tensor]) -> list[str]:
    """Names of all classes that occur, at least their numbers."""
    known = stored.manifest.classes or []
    count = max(len(known), 1 + max(int(columns[key].max()) for key in ("true", "other")))
    return [known[i] if i < len(known) else str(i) for i in range(count)]


def _pictures(
    stored: StoredSet, places: list[int], data: ImageSet | None, progress: Progress | None
) -> tuple[list[str], list[str]]:
    """Names of the views, and a strip of them for each place."""
    manifest, names, pictures = stored.manifest, [], []
    wanted = (manifest.kind.stored, *(["domain"] if "domain" in manifest.configuration["keep"] else []))
    for number, mine in _by_shard(places, manifest.shard_size):
        shard = manifest.shards[number]
        for rows in (mine[at : at + CHUNK] for at in range(0, len(mine), CHUNK)):
            found = read_rows(stored.folder / shard.name, wanted, rows)
            found = {name: pixels(value, (0.0, 1.0)) for name, value in found.items()}
            sources = manifest.places(shard)
            clean = None if data is None else data.rows([sources[row] for row in rows])[0]
            views = views_of(manifest.kind, found, clean)
            names = [name for name, _ in views]
            pictures += strips(views)
            if progress:
                progress("pictures", len(pictures), len(places))
    return names, pictures


def _by_shard(places: list[int], size: int) -> list[tuple[int, list[int]]]:
    """Rows of each shard that has any of the places."""
    rows: dict[int, list[int]] = {}
    for place in places:
        rows.setdefault(place // size, []).append(place % size)
    return list(rows.items())


def _title(stored: StoredSet) -> str:
    configuration, model = stored.manifest.configuration, stored.manifest.model["name"]
    what = configuration["attack"] if stored.manifest.kind == ATTACK else "Occlusion maps"
    return f"{what}: {model} on {Path(stored.manifest.data['name']).name}"


def _about(stored: StoredSet) -> list[tuple[str, str]]:
    """Settings by name, without those that are off."""
    manifest = stored.manifest
    known = {"model": manifest.model["name"], "data": manifest.data["name"], **manifest.configuration}
    if "eps" in known:
        known["eps"] = f"{float(known['eps']) * 255:g}/255"
    if isinstance(known.get("alpha"), float):
        known["alpha"] = f"{known['alpha'] * 255:g}/255"
    return [(name, _listed(value)) for name, value in known.items() if value is not None and value != []]


def _listed(value: Any) -> str:
    """A setting in a line."""
    if isinstance(value, dict):
        return ", ".join(f"{k} {_listed(v)}" for k, v in value.items() if v is not None)
    if isinstance(value, list):
        return ", ".join(map(_listed, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
