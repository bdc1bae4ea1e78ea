"""The demonstration: SD-SGSM, its ablations and the known attacks on PhotoNet's test crops."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .attack import Attack, Settings
from .images import photo_crops
from .metrics import Metrics
from .photonet import MEAN, STD, PhotoNet, load_photonet
from .presets import BIM, FGSM, MIFGSM, PGD, SDSGSM, SmoothingOnly, SpatialOnly
from .progress import Progress
from .result import AttackResult

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
class Row:
    """One attack's line of the table."""

    name: str
    metrics: Metrics
    seconds: float


@dataclass(frozen=True)
class Scene:
    """The model and the images that are attacked.

    Attributes
    ----------
    net
        PhotoNet, on the device of the images.
    images, labels
        (B, 3, 32, 32) test crops in [0, 1] and their classes (B,).
    accuracy
        Share of the crops that the clean model classifies correctly.
    """

    net: PhotoNet
    images: Tensor
    labels: Tensor
    accuracy: float

    def probabilities(self, images: Tensor) -> Tensor:
        """Softmax of the model's logits, (B, 10)."""
        mean, std = (torch.tensor(v, device=images.device)[:, None, None] for v in (MEAN, STD))
        with torch.no_grad():
            logits: Tensor = self.net((images - mean) / std)
        return logits.softmax(1)


def load_scene(per_class: int, device: str = "cpu") -> Scene:
    """Load PhotoNet and draw `per_class` test crops of each of its ten photographs."""
    net = load_photonet().to(device)
    images, labels = (t.to(device) for t in photo_crops("test", per_class))
    scene = Scene(net, images, labels, 0.0)
    hits = scene.probabilities(images).argmax(1) == labels
    return Scene(net, images, labels, float(hits.float().mean()))


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
        attack = factory(scene.net, **{**common, **settings}, progress=progress(name))
        warm_up = factory(scene.net, **{**common, **settings, "steps": 1})
        warm_up.run(scene.images[:8], scene.labels[:8])
        start = time.perf_counter()
        result = attack.run(scene.images, scene.labels)
        success = result.success.sum().item()  # waits for the device
        seconds = time.perf_counter() - start
        row = Row(name, result.metrics(), seconds)
        if success != round(row.metrics.success_rate * row.metrics.attacked):
            raise RuntimeError(f"{name}: the success rate disagrees with the number of successes")
        yield row, result
