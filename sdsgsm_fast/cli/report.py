"""Tables of attacks, as text, Markdown and JSON, written whole or not at all."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..metrics import Metrics

COLUMNS = ("attack", "success", "ℓ2", "ℓ∞·255", "SSIM", "8-bit", "updates", "s")


@dataclass(frozen=True)
class Row:
    """One attack's line of a table, for images in [0, 1]."""

    name: str
    metrics: Metrics
    seconds: float

    def cells(self) -> tuple[str, ...]:
        """Return the line's text in the order of `COLUMNS`."""
        m = self.metrics
        return (
            self.name,
            f"{m.success_rate:.1%}",
            f"{m.l2:.3f}",
            f"{m.linf * 255:.2f}",
            f"{m.ssim:.3f}",
            f"{m.success_rate_8bit:.1%}",
            f"{m.updates:.1f}",
            f"{self.seconds:.1f}",
        )

    def as_dict(self) -> dict[str, Any]:
        """Return every figure by name, ready for JSON."""
        return {"attack": self.name, "seconds": self.seconds, **self.metrics.as_dict()}


def plain(rows: Sequence[Row]) -> str:
    """Return the table as aligned text of at most 80 columns; no figure is ever cut."""
    lines = [COLUMNS, *(row.cells() for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    aligned = [
        "  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(pairs))
        for pairs in (zip(line, widths, strict=True) for line in lines)
    ]
    return "\n".join([aligned[0], "─" * len(aligned[0]), *aligned[1:]]) + "\n"


def markdown(rows: Sequence[Row]) -> str:
    """Return the table as Markdown."""
    lines = [COLUMNS, ("---", *["---:"] * (len(COLUMNS) - 1)), *(row.cells() for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: an interrupted or failed write leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON, atomically; NaN and infinities, which JSON lacks, become null."""
    write_text(path, json.dumps(_without_nan(content), indent=2, allow_nan=False) + "\n")


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
