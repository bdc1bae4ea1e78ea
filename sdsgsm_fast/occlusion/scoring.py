"""Scores of windows from logits of zeroed-out copies, in one precision or in two."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import checks, losses
from ..classifier import Classifier
from ..progress import Progress
from ..traced.operations import ATTENTION
from ..traced.trace import Graph, TraceError, trace
from ..windows import Windows
from .dense import Passes
from .replay import Replay

Needed = Callable[[Tensor, Tensor], Tensor]
"""``needed(scores, doubt)``, (B, windows) each → the windows whose doubt leaves a question open."""

SAMPLE = 0.1  # share of the windows that is re-scored to learn how far bfloat16 is off
LEAST_SAMPLE = 8
SPREADS = 5.0  # standard deviations that bfloat16 is trusted to stay within
ENOUGH = 0.6  # share of the windows from which on all of them are re-scored


@dataclass(frozen=True)
class Scored:
    """What the windows' zero-outs do.

    Attributes
    ----------
    scores
        S of equation 1, (B, rows, cols), in float32 at least.
    flips
        (B, rows, cols) bool: the zero-out changes the predicted class.
    rescored
        (B,) int64: windows that were scored again in the model's own precision; None where the
        search was in one precision.
    """

    scores: Tensor
    flips: Tensor
    rescored: Tensor | None = None


class Scorer:
    """Scores windows of a batch, each way of running the model prepared when it is first needed.

    Parameters
    ----------
    classifier, images, classes, clean
        The model, images (B, C, H, W), the classes c (B,), and the clean images' logits (B, K) in
        the model's own precision.
    windows, score, fill, method, backend, max_memory
        As in `occlusion_scores`; "auto", "dense" or "incremental".
    progress
        Told of every window that was scored.

    Raises
    ------
    ValueError
        If the method is "incremental" and no operation of the model can run on tiles.
    """

    def __init__(
        self,
        classifier: Classifier,
        images: Tensor,
        classes: Tensor,
        clean: Tensor,
        *,
        windows: Windows,
        score: str,
        fill: checks.PerChannel,
        method: str,
        backend: str,
        max_memory: int | None,
        progress: Progress | None,
    ) -> None:
        self.classifier, self.images, self.classes, self.clean = classifier, images, classes, clean
        self.windows, self.score, self.fill, self.method = windows, score, fill, method
        self.backend, self.max_memory, self.progress = backend, max_memory, progress
        self.graph: Graph | None = None
        self.ways: dict[bool, Replay | Passes] = {}
        try:
            self.graph = trace(classifier, images)
            self.ways[False] = self._checked(self.graph)
        except Exception as error:  # whatever it stumbles over, the model itself runs
            self.graph = None
            if method == "incremental":
                raise ValueError(f"method: 'incremental' cannot run this model: {error}") from error

    def all(self, *, reduced: bool) -> Scored:
        """Score every window in one precision."""
        pairs = torch.arange(len(self.images) * len(self.windows), device=self.images.device)
        scores = torch.empty(pairs.shape, dtype=losses.exact(self.clean).dtype, device=pairs.device)
        flips = torch.empty_like(scores, dtype=torch.bool)
        clean = self.way(True).clean_logits(self.images) if reduced else self.clean
        self.score_pairs(pairs, clean, scores, flips, reduced=reduced)
        shape = (len(self.images), self.windows.rows, self.windows.cols)
        return Scored(scores.view(shape), flips.view(shape))

    def settled(self, needed: Needed) -> Scored:
        """Score in bfloat16, then again in full precision whatever `needed` asks for."""
        found = self.all(reduced=True)
        scores, flips = found.scores.flatten(1), found.flips.flatten(1)  # views
        done = torch.zeros_like(flips)
        # Windows are learned from where it matters: nearest to the question, whatever the doubt.
        wanted = self._sample(scores, needed)
        rough, off = scores.clone(), torch.zeros_like(scores)
        while bool(wanted.any()):
            pairs = wanted.flatten().nonzero().flatten()
            self.score_pairs(pairs, self.clean, scores.view(-1), flips.view(-1), reduced=False,
                             stage="re-scoring")  # fmt: skip
            done |= wanted
            off = torch.where(done, rough - scores, 0.0)
            bias, spread = _moments(off, done)
            scores = torch.where(done, scores, rough - bias)
            doubt = torch.where(done, 0.0, SPREADS * spread)
            wanted = needed(scores, doubt) & ~done
            many = (done | wanted).double().mean(1, keepdim=True) > ENOUGH
            wanted |= wanted.any(1, keepdim=True) & many & ~done
        shape = found.scores.shape
        return Scored(scores.view(shape), flips.view(shape), done.sum(1))

    def score_pairs(
        self, pairs: Tensor, clean: Tensor, scores: Tensor, flips: Tensor, *, reduced: bool,
        stage: str = "occlusion",
    ) -> None:  # fmt: skip
        """Score `pairs` (image·windows + window) into flat `scores` and `flips`.

        Raises
        ------
        ValueError
            If a score is not finite; the message names the images.
        """
        before, predicted = losses.score(self.score, clean, self.classes), clean.argmax(1)
        broken = torch.zeros_like(predicted, dtype=torch.bool)
        count = 0
        for part, logits in self.way(reduced).logits(pairs):
            image = part // len(self.windows)
            flips[part] = logits.argmax(1) != predicted[image]
            after = losses.score(self.score, logits, self.classes[image]).to(scores.dtype)
            scores[part] = before[image].to(scores.dtype) - after
            broken[image[~scores[part].isfinite()]] = True
            count += len(part)
            if self.progress:
                self.progress(stage, count, len(pairs))
        if bool(broken.any()):
            raise ValueError(f"model: occlusion scores are not finite for {checks.named(broken)}")

    def way(self, reduced: bool) -> Replay | Passes:
        """How logits come about: by replaying the trace, else by the model itself."""
        if reduced not in self.ways and self.graph is not None:
            self.ways[reduced] = self._replay(self.graph, reduced=reduced)
        if reduced not in self.ways:
            self.ways[reduced] = Passes(
                self.classifier, self.images, self.windows, self.fill, reduced=reduced,
                backend=self.backend, max_memory=self.max_memory,
            )  # fmt: skip
        return self.ways[reduced]

    def _checked(self, graph: Graph) -> Replay:
        """The replay in the model's own precision, if it is right and pays."""
        jump = graph.jump()
        if jump is not None:
            raise TraceError(f"{jump}: a rounding error may become a step")
        strict = self._replay(graph, reduced=False)
        if not strict.incremental and graph.has(ATTENTION):
            raise TraceError("attention: PyTorch's own is faster than its parts")
        if not strict.agrees():
            raise TraceError("the replayed logits are not the model's")
        return strict

    def _replay(self, graph: Graph, *, reduced: bool) -> Replay:
        return Replay(
            self.classifier, self.images, self.windows, self.fill, graph=graph, method=self.method,
            dtype=torch.bfloat16 if reduced else graph.nodes[0].dtypes[0], backend=self.backend,
            max_memory=self.max_memory,
        )  # fmt: skip

    def _sample(self, scores: Tensor, needed: Needed) -> Tensor:
        """A tenth of each image's windows, the first that are needed as doubt grows."""
        size = scores.shape[1]
        least = min(size, max(LEAST_SAMPLE, round(SAMPLE * size)))
        range_ = (scores.amax(1, keepdim=True) - scores.amin(1, keepdim=True)).clamp(min=1e-30)
        wanted = torch.zeros_like(scores, dtype=torch.bool)
        for doubling in range(12):
            few = wanted.sum(1, keepdim=True) < least
            doubt = (range_ * 2.0 ** (doubling - 12)).expand_as(scores)
            wanted = torch.where(few, needed(scores, doubt), wanted)
        few = wanted.sum(1, keepdim=True) < least
        return wanted | (few & (torch.arange(size, device=scores.device) < least))


def _moments(off: Tensor, done: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of what is known of the deviations, (B, 1) each."""
    count = done.sum(1, keepdim=True).clamp(min=1)
    bias = off.sum(1, keepdim=True) / count
    square = torch.where(done, (off - bias).square(), 0.0).sum(1, keepdim=True)
    return bias, (square / (count - 1).clamp(min=1)).sqrt()
