"""Figures of a comparison: success against distortion over ε, and ℓ2 against passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..common.optional import require
from .tables import Row

OWN = {"SD-SGSM": "black", "MinimalSDSGSM": "crimson", "MinimalSDSGSM, 8 bits": "darkorange"}
MARKERS = "osD^vPX<>hp*d"


def draw_curves(path: Path, rows: Sequence[Row], *, ssim: bool) -> None:
    """Draw success against mean ℓ2, or against 1 − SSIM, a line an attack with a point for each ε."""

    def x(row: Row) -> float:
        return 1 - row.metrics.ssim if ssim else row.metrics.l2

    label = ("1 − SSIM" if ssim else "ℓ2") + " of the attacked images (mean, log scale)"
    _draw(path, rows, x, lambda row: row.metrics.success_rate, label, "success rate", lines=True)


def draw_passes(path: Path, rows: Sequence[Row]) -> None:
    """Draw mean ℓ2 against passes, both on log scales, a point an attack."""

    def passes(row: Row) -> float:
        return row.metrics.forwards + row.metrics.backwards

    label = "passes an image, forward and backward (log)"
    _draw(path, rows, passes, lambda row: row.metrics.l2, label, "ℓ2 (mean, log)", lines=False)


def _draw(
    path: Path, rows: Sequence[Row], x: Callable[[Row], float], y: Callable[[Row], float],
    x_label: str, y_label: str, *, lines: bool,
) -> None:  # fmt: skip
    require("matplotlib", extra="cli", purpose="the figures")
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    figure = Figure(figsize=(9.5, 5.2), layout="constrained")
    axis = figure.subplots()
    colours = colormaps["tab20"].colors  # type: ignore[attr-defined]
    for k, name in enumerate(dict.fromkeys(row.name for row in rows)):
        mine = [row for row in rows if row.name == name and x(row) > 0]
        own = name in OWN
        style: dict[str, Any] = {
            "marker": MARKERS[k % len(MARKERS)], "color": OWN.get(name, colours[k % len(colours)]), "label": name,
            "linestyle": "-" if lines else "none", "linewidth": 2.2 if own else 1.0, "markersize": 8 if own else 5,
        }  # fmt: skip
        axis.plot([x(row) for row in mine], [y(row) for row in mine], **style)
    axis.set_xscale("log")
    if lines:
        axis.set_ylim(-0.02, 1.03)
    else:
        axis.set_yscale("log")
    for side in (axis.xaxis,) if lines else (axis.xaxis, axis.yaxis):
        side.set_minor_locator(LogLocator(subs=(2, 5)))
        side.set_major_formatter(StrMethodFormatter("{x:g}"))
        side.set_minor_formatter(StrMethodFormatter("{x:g}"))
    axis.set_xlabel(x_label)
    axis.set_ylabel(y_label)
    axis.grid(visible=True, which="both", alpha=0.25)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
