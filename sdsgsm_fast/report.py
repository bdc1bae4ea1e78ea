"""Tables, JSON and figures of attacks."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import ops
from ._optional import require
from .demo import Row, Scene
from .domains import Occlusion
from .images import CLASS_NAMES
from .result import AttackResult

COLUMNS = ("attack", "success", "ℓ2", "ℓ∞·255", "SSIM", "8-bit", "updates", "s")


def cells(row: Row) -> tuple[str, ...]:
    """Return the row's text in the order of `COLUMNS`."""
    m = row.metrics
    return (
        row.name,
        f"{m.success_rate:.1%}",
        f"{m.l2:.3f}",
        f"{m.linf * 255:.2f}",
        f"{m.ssim:.3f}",
        f"{m.success_rate_8bit:.1%}",
        f"{m.updates:.1f}",
        f"{row.seconds:.1f}",
    )


def markdown(rows: Sequence[Row]) -> str:
    """Return the table as Markdown."""
    lines = [COLUMNS, ("---", *["---:"] * (len(COLUMNS) - 1)), *map(cells, rows)]
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


def draw_figure(
    path: Path, scene: Scene, result: AttackResult, *, eps: float, rows: int = 6
) -> None:
    """Draw clean | sensitivity | domain | perturbation | adversarial, one class a row.

    Parameters
    ----------
    path
        PNG to write.
    scene, result
        The attacked images and the result of an attack with an `Occlusion()` domain.
    eps
        The attack's ε, which sets the stated amplification of the perturbation.
    rows
        Number of images, each the fooled one with the highest contrast in its class.

    Raises
    ------
    ValueError
        If the result has no scores.
    """
    require("matplotlib", extra="cli", purpose="the figure")
    from matplotlib.figure import Figure

    if result.scores is None:
        raise ValueError("result: the figure needs the scores of an Occlusion domain")
    shown = _one_a_class(scene, result.success, rows)
    windows = Occlusion()
    heat = ops.window_mean(result.scores, 32, 32, patch=windows.patch, stride=windows.stride)
    factor = max(1, round(0.5 / eps))
    before = scene.probabilities(scene.images)
    after = scene.probabilities(result.adv)
    figure = Figure(figsize=(9.2, 1.95 * len(shown) + 0.4), layout="constrained")
    grid = figure.subplots(len(shown), 5, squeeze=False)
    titles = ("clean", "sensitivity", "domain", f"perturbation ×{factor}", "adversarial")
    for axis, title in zip(grid[0], titles, strict=True):
        axis.annotate(title, (0.5, 1.18), xycoords="axes fraction", ha="center", weight="bold")
    for axes, i in zip(grid, shown, strict=True):
        extent = float(heat[i].abs().max())
        delta = 0.5 + factor * (result.adv[i] - scene.images[i])
        axes[0].imshow(_picture(scene.images[i]), interpolation="nearest")
        axes[1].imshow(heat[i].cpu(), cmap="RdBu_r", vmin=-extent, vmax=extent)
        axes[2].imshow(result.domain[i].cpu(), cmap="gray", vmin=0, vmax=1)
        axes[3].imshow(_picture(delta.clamp(0, 1)), interpolation="nearest")
        axes[4].imshow(_picture(result.adv[i]), interpolation="nearest")
        axes[0].set_title(_verdict(before[i]), fontsize=9)
        axes[1].set_title(f"up to {extent:.2g}", fontsize=9)
        axes[2].set_title(f"{float(result.domain[i].mean()):.0%} of the pixels", fontsize=9)
        axes[3].set_title(f"ℓ2 {float((result.adv[i] - scene.images[i]).norm()):.2f}", fontsize=9)
        axes[4].set_title(_verdict(after[i]), fontsize=9, color="firebrick")
        for axis in axes:
            axis.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _one_a_class(scene: Scene, success: Tensor, rows: int) -> list[int]:
    """Index of the fooled image with the highest contrast of each of at most `rows` classes."""
    contrast = scene.images.mean(1).flatten(1).std(1)
    fooled = [(scene.labels == label) & success for label in range(len(CLASS_NAMES))]
    best = [int(contrast.where(f, -torch.inf).argmax()) for f in fooled if bool(f.any())]
    return best[:rows]


def _picture(image: Tensor) -> Any:
    return image.permute(1, 2, 0).cpu().numpy()


def _verdict(probabilities: Tensor) -> str:
    best = int(probabilities.argmax())
    return f"{CLASS_NAMES[best]} {float(probabilities[best]):.0%}"
