"""The paper's comparison on anybody's model and images: this library's attacks and its rivals'."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .. import metrics
from ..attack import Attack, Settings
from ..common.optional import require
from ..common.progress import Progress
from ..domains import Occlusion
from ..model.classifier import Classifier, Model
from ..presets import (
    ABFGSM,
    BIM,
    DIFGSM,
    FGSM,
    MIFGSM,
    NIFGSM,
    PGD,
    SDSGSM,
    SINIFGSM,
    TIFGSM,
    Jitter,
    MinimalSDSGSM,
    SmoothingOnly,
    SpatialOnly,
)
from ..result import AttackResult
from .rivals import RIVALS, Rival
from .tables import Row

Factory = Callable[..., Attack]

# Known attacks run as they are published: all steps for every image.
_PUBLISHED: Settings = {"early_stop": False, "seed": 0}

ATTACKS: dict[str, tuple[Factory, Settings]] = {
    "FGSM": (FGSM, {"early_stop": False}),
    "BIM": (BIM, _PUBLISHED),
    "PGD": (PGD, _PUBLISHED),
    "MI-FGSM": (MIFGSM, _PUBLISHED),
    "NI-FGSM": (NIFGSM, _PUBLISHED),
    "SI-NI-FGSM": (SINIFGSM, _PUBLISHED),
    "DI-FGSM": (DIFGSM, _PUBLISHED),
    "TI-FGSM": (TIFGSM, _PUBLISHED),
    "Jitter": (Jitter, _PUBLISHED),
    "AB-FGSM": (ABFGSM, _PUBLISHED),
    "BIM, early stop": (BIM, {}),
    "SD-SGSM, spatial only": (SpatialOnly, {}),
    "SD-SGSM, smoothing only": (SmoothingOnly, {}),
    "SD-SGSM, relax=None": (SDSGSM, {"relax": None}),
    "SD-SGSM": (SDSGSM, {}),
    "MinimalSDSGSM": (MinimalSDSGSM, {}),
    "MinimalSDSGSM, 8 bits": (MinimalSDSGSM, {"levels": 256}),
}
"""Name, class, and the settings besides ε, steps and the model's normalisation."""

SWEPT = ("gain", "alpha", "growth", "coverage", "background", "relax")
WARM_UP = 8  # images that each attack is run on before it is timed


@dataclass(frozen=True)
class Subject:
    """What is attacked.

    Attributes
    ----------
    model, mean, std
        The classifier, and its normalisation or None.
    images, labels
        (B, C, H, W) in [0, 1] and (B,), on the model's device.
    common
        Settings of every attack of this library: backend, batch size and the like.
    """

    model: Model
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    images: Tensor
    labels: Tensor
    common: Settings

    def spread(self, count: int) -> Subject:
        """The same with `count` of its images, evenly chosen."""
        rows = spread(len(self.images), count)
        return replace(self, images=self.images[rows], labels=self.labels[rows])


def spread(total: int, count: int) -> list[int]:
    """Places of at most `count` of `total` things; what comes class by class is taken from every class."""
    count = min(count, total)
    return [i * total // count for i in range(count)]


def run_own(
    subject: Subject, name: str, *, eps: float, steps: int, progress: Progress | None = None, **changes: Any
) -> Row:
    """Run an attack of this library; its row of the table.

    Parameters
    ----------
    subject
        What is attacked.
    name
        One of `ATTACKS`.
    eps, steps
        In units of the images; FGSM has one step.
    progress
        A callback, as attacks take it.
    changes
        Settings that differ from the preset's, which the row shows; `coverage` is the domain's.
    """
    factory, defaults = ATTACKS[name]
    settings: dict[str, Any] = {"eps": eps, "mean": subject.mean, "std": subject.std, **subject.common, **defaults}
    if factory is not FGSM:
        settings["steps"] = steps
    given = dict(changes)
    if "coverage" in given:
        given["domain"] = Occlusion(coverage=given.pop("coverage"))
    attack = factory(subject.model, **{**settings, **given}, progress=progress or False)
    warm_up = factory(subject.model, **{**settings, **given})
    warm_up.run(subject.images[:WARM_UP], subject.labels[:WARM_UP])
    start = time.perf_counter()
    result = attack.run(subject.images, subject.labels)
    result.success.any().item()  # waits for the device
    return row_of(name, result, time.perf_counter() - start, {"eps": eps, **changes})


def run_rival(subject: Subject, rival: Rival, *, eps: float) -> Row:
    """Run an attack of another library on the images that the model gets right; its row."""
    classifier = Classifier(
        subject.model, mean=subject.mean, std=subject.std, precision="float32",
        batch_size=subject.common.get("batch_size"),
    )  # fmt: skip
    start = time.perf_counter()
    result = rival.run(classifier, subject.images, subject.labels, eps)
    return row_of(rival.name, result, time.perf_counter() - start, {"library": rival.library})


def row_of(name: str, result: AttackResult, seconds: float, settings: dict[str, Any]) -> Row:
    """The figures of a result."""
    return Row(name, result.metrics(), seconds, settings, mean_lpips(result))


@cache
def lpips_model() -> Any:
    """The LPIPS network, where lpips is installed and finds or fetches its weights; None otherwise."""
    try:
        return require("lpips", extra="compare", purpose="LPIPS").LPIPS(net="alex", verbose=False).eval()
    except Exception:  # the package, its weights, or torchvision's are not there
        return None


@torch.no_grad()
def mean_lpips(result: AttackResult) -> float | None:
    """Mean LPIPS (Zhang et al. 2018, AlexNet) of the attacked images; None where it is not installed."""
    model, tried = lpips_model(), (~result.skipped).nonzero().flatten()
    if model is None or result.adv.shape[1] != 3:
        return None
    (lo, hi), found = result.bounds, []
    for part in torch.split(tried, 64):
        pair = [((x[part].float() - lo) / (hi - lo) * 2 - 1).cpu() for x in (result.adv, result.images)]
        found.append(model(*pair).flatten())
    return metrics.mean(torch.cat(found)) if found else math.nan


def curves(
    subject: Subject, names: Sequence[str], eps: Sequence[float], steps: int, told: Callable[[str], Progress | None]
) -> Iterator[Row]:
    """Rows of every attack at every ε, for the figures."""
    for name in names:
        for value in eps:
            yield run_own(subject, name, eps=value, steps=steps, progress=told(f"{name}, ε = {value * 255:g}/255"))


def parse_sweep(text: str) -> tuple[str, list[float | None]]:
    """Read "gain=0.25,1,inf"; relax may be "none", and alpha is in units of 1/255.

    Raises
    ------
    ValueError
        If it names no setting that can be swept, or a value is no number.
    """
    name, _, listed = text.partition("=")
    if name not in SWEPT or not listed:
        raise ValueError(f"--sweep: expected NAME=VALUE,… with a name of {', '.join(SWEPT)}, found {text!r}")
    values: list[float | None] = []
    for part in listed.split(","):
        try:
            number = None if name == "relax" and part.strip().lower() == "none" else float(part)
        except ValueError:
            raise ValueError(f"--sweep: {name}: expected numbers, found {part!r}") from None
        values.append(number / 255 if name == "alpha" and number is not None else number)
    return name, values


def sweep(
    subject: Subject, base: str, swept: Iterable[tuple[str, list[float | None]]], *, eps: float, steps: int,
    told: Callable[[str], Progress | None],
) -> Iterator[Row]:  # fmt: skip
    """Rows of one attack with each value of each setting, the others as they are."""
    for name, values in swept:
        for value in values:
            shown = value * 255 if name == "alpha" and value is not None else value
            label = f"{name}={'none' if shown is None else f'{shown:g}'}"
            row = run_own(subject, base, eps=eps, steps=steps, progress=told(label), **{name: value})
            yield replace(row, name=label)


__all__ = ["ATTACKS", "RIVALS", "Subject", "curves", "parse_sweep", "run_own", "run_rival", "sweep"]
