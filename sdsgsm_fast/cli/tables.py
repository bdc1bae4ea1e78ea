"""Tables of attacks, as text, Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..metrics import Metrics

DEMO = ("attack", "success", "ℓ2", "ℓ∞·255", "SSIM", "8-bit", "updates", "s")
COMPARE = ("attack", "success", "8-bit", "ℓ2", "ℓ∞·255", "SSIM", "PSNR", "passes", "ms/image")
COMPARE_LPIPS = (*COMPARE[:7], "LPIPS", *COMPARE[7:])


@dataclass(frozen=True)
class Row:
    """One attack's line of a table, for images in [0, 1].

    Attributes
    ----------
    name, metrics, seconds
        The attack, its figures, and how long the run took.
    settings
        ε, what differs from the preset, or the library that it is taken from; for JSON and CSV.
    lpips
        Mean LPIPS distance of the attacked images, where it was measured.
    """

    name: str
    metrics: Metrics
    seconds: float
    settings: dict[str, Any] = field(default_factory=dict)
    lpips: float | None = None

    def cells(self, columns: Sequence[str]) -> tuple[str, ...]:
        """Return the line's text in the order of `columns`."""
        m, each = self.metrics, 1000 * self.seconds / max(1, self.metrics.images)
        texts = {
            "attack": self.name,
            "success": f"{m.success_rate:.1%}",
            "8-bit": f"{m.success_rate_8bit:.1%}",
            "ℓ2": f"{m.l2:.3f}",
            "ℓ∞·255": f"{m.linf * 255:.2f}",
            "SSIM": f"{m.ssim:.3f}" if m.ssim < 0.9995 else f"{m.ssim:.4f}",
            "PSNR": f"{m.psnr:.1f}",
            "LPIPS": "–" if self.lpips is None else f"{self.lpips:.4f}",
            "updates": f"{m.updates:.1f}",
            "passes": f"{m.forwards + m.backwards:.1f}",
            "ms/image": f"{each:.1f}" if each < 1000 else f"{each:.0f}",
            "s": f"{self.seconds:.1f}",
        }
        return tuple(texts[column] for column in columns)

    def as_dict(self) -> dict[str, Any]:
        """Return every figure by name, ready for JSON."""
        known = {"attack": self.name, "seconds": self.seconds, **self.metrics.as_dict()}
        known |= {} if self.lpips is None else {"lpips": self.lpips}
        return {**known, "settings": self.settings} if self.settings else known


def plain(rows: Sequence[Row], columns: Sequence[str] = DEMO) -> str:
    """Return the table as aligned text; no figure is ever cut."""
    lines = [tuple(columns), *(row.cells(columns) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    aligned = [
        "  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(pairs))
        for pairs in (zip(line, widths, strict=True) for line in lines)
    ]
    return "\n".join([aligned[0], "─" * len(aligned[0]), *aligned[1:]]) + "\n"


def markdown(rows: Sequence[Row], columns: Sequence[str] = DEMO) -> str:
    """Return the table as Markdown."""
    lines = [tuple(columns), ("---", *["---:"] * (len(columns) - 1)), *(row.cells(columns) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def csv_text(rows: Sequence[Row]) -> str:
    """Return every figure of every row as CSV; settings are columns of their own."""
    lines = [{**{k: v for k, v in row.as_dict().items() if k != "settings"}, **row.settings} for row in rows]
    names = list(dict.fromkeys(name for line in lines for name in line))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()
