"""Occlusion sensitivity: how much each window's zero-out takes from a class's score."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import losses
from ..common import checks
from ..common.progress import Progress, reporter
from ..common.windows import Pair, Windows
from ..kernels import ops
from ..model.classifier import Classifier, Model
from .dense import chunk_size
from .fill import Fill, check_fill
from .scoring import Scorer

METHODS = ("auto", "dense", "incremental")


def occlusion_scores(
    model: Model,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    patch: Pair = 4,
    stride: Pair | None = None,
    score: str = "prob",
    fill: Fill = 0.0,
    bounds: tuple[float, float] = (0.0, 1.0),
    mean: checks.PerChannel | None = None,
    std: checks.PerChannel | None = None,
    method: str = "auto",
    precision: str = "auto",
    backend: str = "auto",
    max_memory: int | None = None,
    batch_size: int | None = None,
    progress: bool | Progress = False,
) -> Tensor:
    """Sensitivity S of each window: METHOD.md, equation 1 (after Zeiler & Fergus 2014).

    Parameters
    ----------
    model
        A classifier, `nn.Module` or callable: normalised images to logits (B, K), or to an object
        or mapping that has them as "logits"; one logit z, (B, 1), means two classes, [0, z]. It is
        left as it was.
    images
        (B, C, H, W) floating, in `bounds`.
    labels
        (B,) integer, the classes whose score is measured; None for those that the model predicts.
    patch, stride
        Size and distance of the windows in pixels, an int or (rows, columns); `stride` defaults to
        `patch`.
    score
        φ: "prob" (softmax probability), "log_prob", "logit" or "margin".
    fill
        What zeroed-out pixels become, in the images' own space: a value, one a channel, a tensor
        (C, H, W) or (B, C, H, W) whose pixels are taken, "mean" (of the image, each channel) or
        "blur" (the image, blurred by a Gaussian of a twentieth of its longer side).
    bounds
        (lo, hi) of the pixel values.
    mean, std
        The model's normalisation; one value, or one a channel; None for none.
    method
        "auto": whatever is fastest and exact. "dense": every window costs a whole forward pass.
        "incremental": only what a window changes is computed, for as many operations as it pays;
        an error names the operation at which a model cannot run so.
    precision
        "float32", "auto": the model's own precision. "bfloat16": convolutions and products in
        bfloat16, approximate.
    backend
        "auto", "reference", "native" or "triton": who zeroes out the windows.
    max_memory
        Bytes of scratch space to stay within, approximately; None for no limit but the device's.
    batch_size
        Images or copies that the model gets at once, at most; None for what suits the device. 1
        suits a model that takes no larger batches.
    progress
        True for a line on the terminal, or a callback ``progress(stage, done, total)``.

    Returns
    -------
    Tensor
        (B, rows, cols), in float32 at least. Positive where the window supports the class.

    Raises
    ------
    ValueError, TypeError
        If an argument has a wrong shape, dtype, device or value, or the model's output is not
        finite logits.
    """
    checks.choice("method", method, METHODS)
    checks.choice("score", score, losses.SCORES)
    checks.choice("backend", backend, ops.BACKENDS)
    if max_memory is not None:
        checks.integer("max_memory", max_memory, 1)
    if batch_size is not None:
        checks.integer("batch_size", batch_size, 1)
    classifier = Classifier(model, mean=mean, std=std, precision=precision, batch_size=batch_size)
    checks.image_batch("images", images)
    windows = Windows.over(images.shape[2], images.shape[3], patch, stride)
    check_fill(fill, images)
    checks.values_in_bounds(images, checks.pixel_bounds(bounds))
    classifier.check(images)
    if labels is not None:
        checks.class_indices("labels", labels, images)
    if not len(images):
        return images.new_empty((0, windows.rows, windows.cols))
    # An inference tensor cannot take part in a graph; a copy of it can.
    with torch.inference_mode(False), torch.no_grad(), classifier.frozen():
        images = images.clone() if images.is_inference() else images.detach()
        size = chunk_size(classifier, images, max_memory)
        clean = torch.cat([classifier.logits(part) for part in torch.split(images, size)])
        classes = clean.argmax(1) if labels is None else labels.clone().long()
        checks.classes_in_range("labels", classes, clean.shape[1])
        scorer = Scorer(
            classifier, images, classes, clean,
            windows=windows, score=score, fill=fill, method=method, backend=backend,
            max_memory=max_memory, progress=reporter(progress),
        )  # fmt: skip
        return scorer.score().scores


def occlusion_map(
    model: Model,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    patch: Pair = 4,
    stride: Pair | None = None,
    score: str = "prob",
    fill: Fill = 0.0,
    bounds: tuple[float, float] = (0.0, 1.0),
    mean: checks.PerChannel | None = None,
    std: checks.PerChannel | None = None,
    method: str = "auto",
    precision: str = "auto",
    backend: str = "auto",
    max_memory: int | None = None,
    batch_size: int | None = None,
    progress: bool | Progress = False,
) -> Tensor:
    """Occlusion map: a pixel's value is the mean score of the windows over it (equation 2).

    Parameters and errors are those of `occlusion_scores`. Equal to `captum.attr.Occlusion` of the
    same score, windows and fill.

    Returns
    -------
    Tensor
        (B, H, W), in float32 at least.
    """
    scores = occlusion_scores(
        model, images, labels,
        patch=patch, stride=stride, score=score, fill=fill, bounds=bounds, mean=mean, std=std,
        method=method, precision=precision, backend=backend, max_memory=max_memory, batch_size=batch_size,
        progress=progress,
    )  # fmt: skip
    height, width = images.shape[2:]
    return ops.window_mean(scores, height, width, patch=patch, stride=stride, backend=backend)
