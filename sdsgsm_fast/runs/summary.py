"""Figures of a whole set, from what its shards hold of each image."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common.files import without_nan
from ..metrics import mean
from .manifest import Manifest
from .shards import COUNTS, FLAGS, NUMBERS, read

COLUMNS = (*COUNTS, *FLAGS, *NUMBERS)


def columns_of(folder: Path, manifest: Manifest) -> dict[str, Tensor]:
    """What is known of each image, (N,) each, in the data set's order; no pixels."""
    parts = [read(folder / shard.name, COLUMNS) for shard in manifest.shards]
    return {name: torch.cat([part[name] for part in parts]) for name in COLUMNS}


def summary_of(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """Counts and means over the images that were attacked; None where there is no mean."""
    found = columns_of(folder, manifest)
    tried = ~found["skipped"]
    figures: dict[str, Any] = {
        "images": len(tried),
        "skipped": int(found["skipped"].sum()),
        "attacked": int(tried.sum()),
        "fooled": int(found["success"].sum()),
        "success_rate": mean(found["success"][tried]),
        **{name: mean(found[name][tried]) for name in NUMBERS},
        **{name: mean(found[name][tried]) for name in ("updates", "forward", "backward")},
    }
    summary: dict[str, Any] = without_nan(figures)
    return summary


def csv_bytes(summary: dict[str, Any]) -> bytes:
    """The summary as a line of CSV under its names."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(summary), lineterminator="\n")
    writer.writeheader()
    writer.writerow(summary)
    return buffer.getvalue().encode()
