"""Approximate occlusion scores from a few gradients, halfway between the image and its zero-outs.

Eight groups of windows, no two of a group adjacent, are halved towards the fill one group at a
time; the gradient there, times the way to the fill, estimates what each window of the group takes
from the score. Approximate: docs/occlusion.md gives its measured agreement with the exact scores.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import losses
from ..common import checks
from ..common.progress import Progress
from ..common.windows import Windows
from ..model.classifier import Classifier
from .dense import batch_size

GROUPS = 8


def midpoint_scores(
    classifier: Classifier,
    images: Tensor,
    classes: Tensor,
    *,
    windows: Windows,
    score: str,
    fill: checks.PerChannel,
    max_memory: int | None,
    progress: Progress | None,
) -> Tensor:
    """Estimate S of equation 1 for every window with 8 forward and backward passes an image.

    With overlapping windows it takes 8 for each way in which they overlap.

    Returns
    -------
    Tensor
        (B, rows, cols), in float32 at least.

    Raises
    ------
    ValueError
        If a gradient is not finite, or the model's output does not depend on the images.
    """
    values = torch.tensor(
        checks.per_channel("fill", fill, images.shape[1]), device=images.device,
        dtype=losses.exact(images).dtype,
    ).to(images.dtype)  # fmt: skip
    scores = losses.exact(images).new_zeros((len(images), windows.rows, windows.cols))
    groups = list(_groups(windows))
    size = batch_size(classifier, images, max_memory)
    for start in range(0, len(images), size):
        rows = slice(start, start + size)
        away = images[rows] - values[:, None, None]
        for number, group in enumerate(groups):
            mask = _cover(windows, group).to(images)
            found = _estimates(classifier, images[rows] - 0.5 * mask * away, away, classes[rows],
                               windows, score)  # fmt: skip
            chosen = group.to(images.device)
            scores[rows, chosen] = found[:, chosen]
            if progress:
                done = start * len(groups) + len(away) * (number + 1)
                progress("occlusion", done, len(images) * len(groups))
    finite = scores.flatten(1).isfinite().all(1)
    if not bool(finite.all()):
        raise ValueError(f"model: occlusion scores are not finite for {checks.named(~finite)}")
    return scores


def _groups(windows: Windows) -> Iterator[Tensor]:
    """Masks (rows, cols) of windows that are halved together; they share no pixel or border."""
    over = [-(-p // s) for p, s in zip(windows.patch, windows.stride, strict=True)]
    i, j = torch.arange(windows.rows)[:, None], torch.arange(windows.cols)
    # Same remainder of 3i + j modulo 8: the nearest of a group are two tiles off on both axes.
    colour = (3 * (i // over[0]) + j // over[1]) % GROUPS
    for top in range(over[0]):
        for left in range(over[1]):
            same = (i % over[0] == top) & (j % over[1] == left)
            for k in range(GROUPS):
                if bool((chosen := same & (colour == k)).any()):
                    yield chosen


def _cover(windows: Windows, group: Tensor) -> Tensor:
    """(H, W): 1 on the pixels of the group's windows."""
    cover = torch.zeros(windows.height, windows.width)
    for k in group.flatten().nonzero().flatten().tolist():
        cover[windows[k]] = 1
    return cover


def _estimates(
    classifier: Classifier, halved: Tensor, away: Tensor, classes: Tensor, windows: Windows,
    score: str,
) -> Tensor:  # fmt: skip
    """Σ over each window of gradient · (x − fill), (B, rows, cols); right for halved windows."""
    with torch.enable_grad():
        logits, leaf = classifier.trace(halved, search=True)
        grad = classifier.gradient(losses.score(score, logits, classes), leaf)
    moved = (losses.exact(grad) * away).sum(1)
    bottom, right = windows.overhang
    whole = F.pad(moved, (0, right, 0, bottom))[:, None]
    return F.avg_pool2d(whole, windows.patch, windows.stride, divisor_override=1)[:, 0]
