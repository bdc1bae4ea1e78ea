"""Draw docs/occlusion-plan.png: one window's change on the maps of a ResNet-18, as planned.

python scripts/draw_plan.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.patches import Rectangle

from sdsgsm_fast.common.windows import Windows
from sdsgsm_fast.engine.lower import lower
from sdsgsm_fast.engine.plan import Planner
from sdsgsm_fast.engine.trace import trace
from sdsgsm_fast.model.classifier import Classifier

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "bench"))
from nets import resnet18_cifar  # noqa: E402

WINDOW = (3, 4)
CHANGED, TILE, WHOLE = "#c1440e", "#2b6cb0", "#b9c3cf"


def main() -> None:
    """Plan, and draw the maps whose rectangles differ."""
    images, windows = torch.rand(1, 3, 32, 32), Windows.over(32, 32, 4)
    graph = trace(Classifier(resnet18_cifar()), images)
    plan = Planner(lower(graph, torch.float32, images.device, "auto"), windows, 20.0).best()
    shown = [0, 1, 3, 5, 6, 8, 10, 11, 13, len(plan.network.steps) - 4]
    names = ["image", "stem", "stage 1, block 1", "stage 1, block 2", "stage 2, conv 1",
             "stage 2, block 1", "stage 2, block 2", "stage 3, conv 1", "stage 3, block 1",
             "stage 4"]  # fmt: skip
    figure, axes = plt.subplots(1, len(shown), figsize=(15, 2.4))
    for axis, k, name in zip(axes, shown, names, strict=True):
        step, crop = plan.network.steps[k], plan.crops[k]
        assert step.shape is not None
        _, height, width = step.shape
        axis.set(xlim=(-0.5, width + 0.5), ylim=(height + 0.5, -0.5), aspect="equal")
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
        tiled = crop is not None
        axis.add_patch(
            Rectangle((0, 0), width, height, facecolor="#f3f5f7" if tiled else WHOLE,
                      edgecolor="#5a6672", linewidth=1)
        )  # fmt: skip
        size = f"{height}×{width}"
        if crop is not None:
            top, left = crop.rows.start[WINDOW[0]], crop.cols.start[WINDOW[1]]
            h, w = crop.size
            color = TILE if k else CHANGED
            axis.add_patch(Rectangle((left, top), w, h, facecolor=color, alpha=0.85))
            size = f"{h}×{w} of {size}"
        axis.set_title(name, fontsize=9)
        axis.set_xlabel(size, fontsize=9)
    figure.suptitle(
        "Red: the window. Blue: all that it can change, the only part that is computed. "
        "Grey: computed whole.", y=0.09, fontsize=10,
    )  # fmt: skip
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    figure.savefig(ROOT / "docs" / "occlusion-plan.png", dpi=110)


if __name__ == "__main__":
    main()
