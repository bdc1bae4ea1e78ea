"""Occlusion maps of whole data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common import checks
from ..common.progress import Progress
from ..common.windows import Pair
from ..data.images import ImageSet
from ..kernels import ops
from ..model.classifier import PREDICTED, Classifier, Model
from ..occlusion import Fill, occlusion_scores
from .job import Job, on_host, plain
from .kinds import OCCLUSION
from .run import run

TARGETS = ("label", "predicted")
KEPT = ("scores",)


def occlude_dataset(
    model: Model,
    data: ImageSet,
    out: str | Path,
    *,
    target: str = "label",
    patch: Pair = 4,
    stride: Pair | None = None,
    score: str = "prob",
    fill: Fill = 0.0,
    mean: checks.PerChannel | None = None,
    std: checks.PerChannel | None = None,
    method: str = "auto",
    precision: str = "auto",
    backend: str = "auto",
    max_memory: int | None = None,
    batch_size: int | None = None,
    limit: int | None = None,
    shard_size: int | None = None,
    keep: tuple[str, ...] = (),
    model_name: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Occlusion maps of a data set into a folder of shards; called again it goes on where it was stopped.

    Parameters
    ----------
    model
        As in `occlusion_map`.
    data, out, limit, shard_size, model_name, progress
        As in `attack_dataset`, errors too; a shard has at most 128 images if `shard_size` is None.
    target
        The class whose score is measured: "label" or "predicted".
    patch, stride, score, fill, mean, std, method, precision, backend, max_memory, batch_size
        As in `occlusion_map`; `fill` is no tensor.
    keep
        "scores": store those of the windows, too.

    Returns
    -------
    dict
        The summary, as in summary.json.
    """
    settings = {
        "patch": patch, "stride": stride, "score": score, "fill": fill, "mean": mean, "std": std, "method": method,
        "precision": precision, "backend": backend, "max_memory": max_memory, "batch_size": batch_size,
    }  # fmt: skip
    job = OcclusionJob(model, target, settings, keep)
    return run(job, data, out, limit=limit, shard_size=shard_size, model_name=model_name, progress=progress)


class OcclusionJob(Job):
    """Occlusion maps and what the model says of the clean images."""

    kind = OCCLUSION

    def __init__(self, model: Model, target: str, settings: dict[str, Any], keep: tuple[str, ...]) -> None:
        checks.choice("target", target, TARGETS)
        for name in keep:
            checks.choice("keep", name, KEPT)
        known = {name: settings[name] for name in ("mean", "std", "precision", "batch_size")}
        super().__init__(Classifier(model, **known), keep)
        self.target, self.given = target, settings

    def settings(self) -> dict[str, Any]:
        """Those of `occlude_dataset`."""
        return {"target": self.target, **{name: plain(name, value) for name, value in self.given.items()}}

    def tensors(self, images: Tensor, labels: Tensor, places: list[int]) -> dict[str, Tensor]:
        """Maps (n, H, W), and the model's confidence in the class whose score is measured."""
        with self.classifier.frozen():
            clean = torch.cat([self.classifier.logits(part) for part in torch.split(images, PREDICTED)])
        predicted = clean.argmax(1)
        explained = (labels if self.target == "label" else predicted).clone()  # safetensors refuses shared memory
        checks.classes_in_range("labels", explained, clean.shape[1])
        scores = occlusion_scores(self.classifier.model, images, explained, **self.given)
        windows = {name: self.given[name] for name in ("patch", "stride", "backend")}
        maps = ops.window_mean(scores, *images.shape[2:], **windows).float()
        found = {
            "maps": maps, "labels": labels, "predicted": predicted, "explained": explained,
            "index": torch.tensor(places), "peak": maps.amax((1, 2)), "least": maps.amin((1, 2)),
            "confidence": clean.double().softmax(1).gather(1, explained[:, None])[:, 0].float(),
        }  # fmt: skip
        if "scores" in self.keep:
            found["scores"] = scores.float()
        return on_host(found)
