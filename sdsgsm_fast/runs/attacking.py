"""Attacks on whole data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import metrics
from ..attack import Attack, Settings
from ..common import checks
from ..common.progress import Progress
from ..data.images import ImageSet
from ..gradients import Diversity
from ..model.classifier import PREDICTED
from ..result import AttackResult
from .job import Job, on_host, plain
from .kinds import ATTACK
from .run import run
from .shards import as_bytes

KEPT = ("domain", "scores")
UNRECORDED = ("progress",)  # settings that say nothing of the result
PART = 256  # images that are compared at once


def attack_dataset(
    attack: Attack,
    data: ImageSet,
    out: str | Path,
    *,
    limit: int | None = None,
    shard_size: int | None = None,
    keep: tuple[str, ...] = (),
    png: bool = False,
    model_name: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Attack a data set into a folder of shards; called again it goes on where it was stopped.

    Each shard is attacked by itself, so that it is the same whatever happened before, and is on the
    disk before the next begins. Under torchrun every rank calls this, with the folder on a disk
    that all of them have; they take shards from a common list.

    Parameters
    ----------
    attack
        An attack with its model. Its settings are numbers for all images, and a `seed` where it
        draws random numbers.
    data
        Images as `images.load` gives them, in [0, 1].
    out
        The folder: new, empty, or that of the same run.
    limit
        So many images, evenly chosen; None for all.
    shard_size
        Images of a shard; None for 1024, or fewer where those take more than 256 MB.
    keep
        "domain" and "scores": what to store besides images, labels, verdicts and counts.
    png
        Write each adversarial image as a PNG file, too. It takes an attack with ``levels=256``, so
        that the files hold what was judged.
    model_name
        For the manifest; None for the class's.
    progress
        A callback ``progress("images", done, total)``.

    Returns
    -------
    dict
        The summary, as in summary.json.

    Raises
    ------
    ValueError
        If the folder holds another set; the message says what differs. If another run is writing
        there, or a setting cannot be written down.
    OSError
        If the disk is full or the folder cannot be written. What is finished stays.
    RunStopped
        After the first Ctrl-C, once the shard that was under way is finished; a second one stops at
        once.
    """
    if attack.bounds != (0.0, 1.0):
        raise ValueError(f"bounds: images of a data set lie in [0, 1], the attack's in {list(attack.bounds)}")
    if png and attack.levels != 256:
        raise ValueError(f"png: expected an attack with levels=256, found levels={attack.levels}")
    if png and len(data) and (channels := data.rows([0])[0].shape[1]) not in (1, 3):
        raise ValueError(f"png: expected images of one channel or three, found {channels}")
    job = AttackJob(attack, keep)
    return run(job, data, out, limit=limit, shard_size=shard_size, png=png, model_name=model_name, progress=progress)


class AttackJob(Job):
    """Adversarial images."""

    kind = ATTACK

    def __init__(self, attack: Attack, keep: tuple[str, ...]) -> None:
        for name in keep:
            checks.choice("keep", name, KEPT)
        super().__init__(attack.classifier, keep)
        self.attack = attack.without_skipped()

    def settings(self) -> dict[str, Any]:
        """The attack's class and settings; errors as of `settings_of`."""
        return {"attack": type(self.attack).__name__, **settings_of(self.attack)}

    def tensors(self, images: Tensor, labels: Tensor, places: list[int]) -> dict[str, Tensor]:
        """Attack the images; stored as bytes where results lie on 256 levels."""
        result = self.attack.run(images, labels, index=torch.tensor(places))
        adv, bounds = result.adv, result.bounds
        found = {
            "images": as_bytes(adv, bounds) if self.attack.levels == 256 else adv.float(),
            "labels": labels, "reached": self._reached(result),
            "success": result.success, "skipped": result.skipped, "updates": result.updates,
            "forward": result.passes.forward, "backward": result.passes.backward, "index": result.index,
            "l2": metrics.l2(adv, images).float(), "linf": metrics.linf(adv, images).float(),
            "ssim": _similarity(result).float(),
        }  # fmt: skip
        if "domain" in self.keep:
            found["domain"] = result.domain.float()
        if "scores" in self.keep and result.scores is not None:
            found["scores"] = result.scores.float()
        return on_host(found)

    def _reached(self, result: AttackResult) -> Tensor:
        """Classes (B,) that the model gives the results; another than before only where it is fooled."""
        classes, fooled = result.predicted.clone(), result.success.nonzero().flatten()
        with self.classifier.frozen():
            for rows in torch.split(fooled, PREDICTED):
                classes[rows] = self.classifier.verdicts(result.adv[rows])[0].argmax(1)
        return classes


def _similarity(result: AttackResult) -> Tensor:
    """SSIM (B,), NaN where images are smaller than its window."""
    found = torch.full((len(result.adv),), torch.nan, dtype=torch.float64, device=result.adv.device)
    if min(result.adv.shape[2:]) < metrics.SSIM_WINDOW:
        return found
    found[result.skipped] = 1.0
    for rows in torch.split((~result.skipped).nonzero().flatten(), PART):
        found[rows] = metrics.ssim(result.adv[rows], result.images[rows], result.bounds).to(found)
    return found


def settings_of(attack: Attack) -> dict[str, Any]:
    """An attack's settings as JSON has them.

    Raises
    ------
    ValueError
        If one is a tensor or a function, which cannot be written down, or random numbers have no
        seed.
    """
    draws = attack.random_start or attack.loss == "jitter" or any(isinstance(e, Diversity) for e in attack.gradient)
    if draws and attack.seed is None:
        raise ValueError("seed: a run that draws random numbers needs one, to be the same when it is resumed")
    classifier = attack.classifier
    found = {}
    for name in Settings.__annotations__:
        if name not in UNRECORDED:
            holder = classifier if name in ("mean", "std", "precision") else attack
            found[name] = plain(name, getattr(holder, name))
    return found
