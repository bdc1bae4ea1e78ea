"""The demonstration: SD-SGSM, its ablations and the known attacks on PhotoNet's test crops."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..attack import Attack, Settings
from ..common.optional import require
from ..common.progress import Progress
from ..data.photonet import MEAN, STD, load_photonet
from ..data.photos import CLASS_NAMES, photo_crops
from ..domains import Occlusion
from ..kernels import ops
from ..model.classifier import Classifier
from ..presets import BIM, FGSM, MIFGSM, PGD, SDSGSM, SmoothingOnly, SpatialOnly
from ..result import AttackResult
from .tables import Row

Factory = Callable[..., Attack]

# Name, class, and the settings besides eps, steps and normalisation. "All steps" is how the
# libraries run these attacks: without early stop.
ATTACKS: tuple[tuple[str, Factory, Settings], ...] = (
    ("FGSM", FGSM, {"early_stop": False}),
    ("BIM, all steps", BIM, {"early_stop": False}),
    ("PGD, all steps", PGD, {"early_stop": False, "seed": 0}),
    ("MI-FGSM, all steps", MIFGSM, {"early_stop": False}),
    ("BIM, early stop", BIM, {}),
    ("SD-SGSM, spatial only", SpatialOnly, {}),
    ("SD-SGSM, smoothing only", SmoothingOnly, {}),
    ("SD-SGSM, relax=None", SDSGSM, {"relax": None}),
    ("SD-SGSM", SDSGSM, {}),
)


@dataclass(frozen=True)
class Scene:
    """The model and the images that are attacked.

    Attributes
    ----------
    classifier
        PhotoNet with its normalisation, on the device of the images.
    images, labels
        (B, 3, 32, 32) test crops in [0, 1] and their classes (B,).
    """

    classifier: Classifier
    images: Tensor
    labels: Tensor

    def probabilities(self, images: Tensor) -> Tensor:
        """Softmax of the model's logits, (B, 10)."""
        return self.classifier.logits(images).softmax(1)

    def accuracy(self) -> float:
        """Share of the crops that the clean model classifies correctly."""
        hits = self.probabilities(self.images).argmax(1) == self.labels
        return float(hits.float().mean())


def load_scene(per_class: int, device: str = "cpu") -> Scene:
    """Load PhotoNet and draw `per_class` test crops of each of its ten photographs."""
    classifier = Classifier(load_photonet().to(device), mean=MEAN, std=STD)
    images, labels = photo_crops("test", per_class)
    return Scene(classifier, images.to(device), labels.to(device))


def run_attacks(
    scene: Scene, *, eps: float, steps: int, backend: str, progress: Callable[[str], Progress]
) -> Iterator[tuple[Row, AttackResult]]:
    """Attack the scene with every attack of the table, one after the other.

    `progress` is asked for a callback by the name of each attack.
    """
    for name, factory, settings in ATTACKS:
        common: Settings = {"eps": eps, "mean": MEAN, "std": STD, "backend": backend}
        if factory is not FGSM:
            common["steps"] = steps
        model = scene.classifier.model
        attack = factory(model, **{**common, **settings}, progress=progress(name))
        warm_up = factory(model, **{**common, **settings, "steps": 1})
        warm_up.run(scene.images[:8], scene.labels[:8])
        start = time.perf_counter()
        result = attack.run(scene.images, scene.labels)
        result.success.any().item()  # waits for the device
        seconds = time.perf_counter() - start
        yield Row(name, result.metrics(), seconds), result


def draw_figure(path: Path, scene: Scene, result: AttackResult, *, eps: float, rows: int = 6) -> None:
    """Draw clean | sensitivity | domain | perturbation | adversarial, one class a row.

    Parameters
    ----------
    path
        PNG to write.
    scene, result
        The attacked images and the result of an attack with the domain ``Occlusion()``.
    eps
        The attack's ε, which sets the stated amplification of the perturbation.
    rows
        Number of images, each the one with the highest contrast in its class: of the fooled ones,
        or of all if none was fooled.

    Raises
    ------
    ValueError
        If the result has no scores.
    """
    require("matplotlib", extra="cli", purpose="the figure")
    from matplotlib.figure import Figure

    if result.scores is None:
        raise ValueError("result: the figure needs the scores of an Occlusion domain")
    some = bool(result.success.any())
    shown = _one_a_class(scene, result.success if some else ~result.success, rows)
    windows = Occlusion().windows(scene.images)
    heat = ops.window_mean(result.scores, windows.height, windows.width, patch=windows.patch, stride=windows.stride)
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
        delta = result.adv[i] - scene.images[i]
        axes[0].imshow(_picture(scene.images[i]), interpolation="nearest")
        axes[1].imshow(heat[i].cpu(), cmap="RdBu_r", vmin=-extent, vmax=extent)
        axes[2].imshow(result.domain[i].cpu(), cmap="gray", vmin=0, vmax=1)
        axes[3].imshow(_picture((0.5 + factor * delta).clamp(0, 1)), interpolation="nearest")
        axes[4].imshow(_picture(result.adv[i]), interpolation="nearest")
        axes[0].set_title(_verdict(before[i]), fontsize=9)
        axes[1].set_title(f"±{extent:.2g}", fontsize=9)
        axes[2].set_title(f"{float(result.domain[i].mean()):.0%} of the pixels", fontsize=9)
        axes[3].set_title(f"ℓ2 {float(delta.norm()):.2f}", fontsize=9)
        axes[4].set_title(_verdict(after[i]), fontsize=9, color="firebrick")
        for axis in axes:
            axis.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _one_a_class(scene: Scene, wanted: Tensor, rows: int) -> list[int]:
    """Index of the image with the highest contrast of each of at most `rows` classes."""
    contrast = scene.images.mean(1).flatten(1).std(1)
    classes = [(scene.labels == label) & wanted for label in range(len(CLASS_NAMES))]
    best = [int(contrast.where(c, -torch.inf).argmax()) for c in classes if bool(c.any())]
    return best[:rows]


def _picture(image: Tensor) -> Any:
    return image.permute(1, 2, 0).cpu().numpy()


def _verdict(probabilities: Tensor) -> str:
    best = int(probabilities.argmax())
    return f"{CLASS_NAMES[best]} {float(probabilities[best]):.0%}"
