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
from .kinds import ATTACK, Kind
from .manifest import Manifest
from .shards import read


def columns_of(folder: Path, manifest: Manifest) -> dict[str, Tensor]:
    """What is known of each image, (N,) each, in the data set's order; no pixels."""
    names = manifest.kind.columns
    parts = [read(folder / shard.name, names) for shard in manifest.shards]
    return {name: torch.cat([part[name] for part in parts]) for name in names}


def summary_of(kind: Kind, columns: dict[str, Tensor]) -> dict[str, Any]:
    """Counts and means of what `columns_of` found; None where there is no mean."""
    summary: dict[str, Any] = without_nan(_attacked(columns) if kind == ATTACK else _explained(columns))
    return summary


def _attacked(found: dict[str, Tensor]) -> dict[str, Any]:
    """Of an attack, means over the images that were attacked."""
    tried = ~found["skipped"]
    return {
        "images": len(tried),
        "skipped": int(found["skipped"].sum()),
        "attacked": int(tried.sum()),
        "fooled": int(found["success"].sum()),
        "success_rate": mean(found["success"][tried]),
        **{name: mean(found[name][tried]) for name in ("l2", "linf", "ssim", "updates", "forward", "backward")},
    }


def _explained(found: dict[str, Tensor]) -> dict[str, Any]:
    """Of occlusion maps."""
    right = found["predicted"] == found["labels"]
    return {
        "images": len(right),
        "right": int(right.sum()),
        "accuracy": mean(right),
        **{name: mean(found[name]) for name in ("confidence", "peak", "least")},
    }


def csv_bytes(summary: dict[str, Any]) -> bytes:
    """The summary as a line of CSV under its names."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(summary), lineterminator="\n")
    writer.writeheader()
    writer.writerow(summary)
    return buffer.getvalue().encode()
