"""Scores of windows from logits of zeroed-out copies, in one precision or in two."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .. import losses
from ..common import checks
from ..common.progress import Progress
from ..common.windows import Windows
from ..engine import CompiledWindows
from ..model.classifier import Classifier
from ..model.precision import bfloat16_gain, uses_tf32
from .dense import DenseRunner
from .fill import Fill, constants

Undecided = Callable[[Tensor, Tensor], Tensor]
"""``undecided(scores, doubt)``, (B, windows) each → the windows whose doubt leaves the domain open."""

LOG = logging.getLogger("sdsgsm_fast")
SAMPLE = 0.1  # share of the windows that is re-scored to learn how far bfloat16 is off
LEAST_SAMPLE = 8
BISECTIONS = 9
NOISE = 0.1  # share of a window's distance from the doubtful ones that bfloat16 may be off by
SPREADS = 5.0  # standard deviations that bfloat16 is trusted to stay within
ROUNDING = 4.0  # units that float32 itself may be off by
ENOUGH = 0.6  # share of the windows from which on all of them are re-scored
PROBE = 8  # images that tell whether a search in bfloat16 pays
WORTHWHILE = 0.25  # share of the windows, scored again, up to which it does

# A search in bfloat16 that float32 goes over again pays for any model where products gain at least
# SURE_GAIN. Where they gain less it may for models of many operations, which depends on how many
# windows are scored again, and PROBE of many images tell: with twofold products whole attacks take
# 0.84 to 0.88 of the time on a ResNet-18, of 5e8, and 1.07 times as long on PhotoNet, of 4e7.
SURE_GAIN = 4.0
LEAST_WORK = 1e8
LEAST_PROBES = 2


class WindowLogits(Protocol):
    """Gives the logits of windows' zeroed-out copies."""

    group: int
    """Images that are run together; callers should not ask for more at once."""

    def clean_logits(self, first: int, stop: int) -> Tensor:
        """Logits (n, K) of some images as they are."""

    def logits(self, pairs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield parts of `pairs`, image·windows + window, and their logits (n, K)."""

    def forget(self) -> None:
        """Let go of what is held for the images."""


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


@dataclass(frozen=True)
class _ScoreTables:
    """What has been found out so far of each window, (B, windows) each.

    Scores and flips as in `Scored`; `losses.evidence` where a search is to be settled, else None.
    """

    scores: Tensor
    flips: Tensor
    evidence: Tensor | None


class Scorer:
    """Scores windows of a batch by the engine, or by the model itself where the engine cannot.

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
        fill: Fill,
        method: str,
        backend: str,
        max_memory: int | None,
        progress: Progress | None,
    ) -> None:
        self.classifier, self.images, self.classes, self.clean = classifier, images, classes, clean
        self.windows, self.phi, self.method = windows, score, method
        self.fill = constants(fill, images)
        self.backend, self.max_memory, self.progress = backend, max_memory, progress
        self.compiled: CompiledWindows | None = None
        self._dense: dict[bool, DenseRunner] = {}
        try:
            self.compiled = CompiledWindows(
                classifier, images, clean,
                windows=windows, fill=self.fill, method=method, backend=backend, max_memory=max_memory,
            )  # fmt: skip
        except Exception as error:  # whatever it stumbles over, the model itself runs
            if method == "incremental":
                raise ValueError(f"method: 'incremental' cannot run this model: {error}") from error
            LOG.info("occlusion: by the model itself, since the traced one cannot be used: %s", error)
            return
        LOG.info("occlusion: by the traced model, %s", self.compiled.runner(reduced=False).described)
        if uses_tf32(images.device):  # what two ways of computing differ by would be in every score
            self.clean = self._traced_clean()

    @property
    def work(self) -> float:
        """Floating-point operations of a whole image; 0 where nobody knows."""
        return 0.0 if self.compiled is None else self.compiled.work

    @torch.no_grad()
    def _traced_clean(self) -> Tensor:
        """Logits (B, K) of the clean images by the traced model, in the model's own precision."""
        runner, found, at = self.runner(False), torch.empty_like(self.clean), 0
        while at < len(found):
            stop = min(at + runner.group, len(found))
            found[at:stop] = runner.clean_logits(at, stop)
            at = stop
        return found

    @torch.no_grad()
    def score(self, undecided: Undecided | None = None) -> Scored:
        """Equation 1 for every window.

        With precision "auto" and `undecided`, which says which windows' exact scores the domain
        needs, the windows are searched in bfloat16 where that pays, and only those scored again.

        Raises
        ------
        ValueError
            If a score is not finite; the message names the images.
        """
        images, precision = self.images, self.classifier.precision
        if undecided is not None and precision == "auto" and self.clean.dtype == torch.float32:
            gain = bfloat16_gain(images.device)
            many = self.work >= LEAST_WORK and len(images) >= LEAST_PROBES * PROBE
            if gain >= SURE_GAIN or (gain > 1 and many):
                return self.score_in_two_precisions(undecided, probing=gain < SURE_GAIN)
        return self.score_all(reduced=self.classifier.reduced)

    def score_all(self, *, reduced: bool) -> Scored:
        """Score every window in one precision."""
        tables = self._tables(with_evidence=False)
        if reduced:
            self.runner(False).forget()
        size = self.runner(True).group if reduced else len(self.images)
        for at in range(0, len(self.images), size):
            self._score_images(slice(at, at + size), tables, reduced=reduced)
        return self._found(tables)

    def score_in_two_precisions(self, undecided: Undecided, *, probing: bool) -> Scored:
        """Score in bfloat16, then again in full precision whatever `undecided` asks for.

        With `probing` the first images tell whether that pays; if it does not, the others are
        scored in full precision at once.
        """
        tables = self._tables(with_evidence=True)
        self.runner(False).forget()
        count, device = len(self.images), self.clean.device
        again = torch.zeros(count, dtype=torch.int64, device=device)
        at, pays = 0, True
        while at < count:
            size = min(self.runner(reduced).group for reduced in (True, False))
            rows = slice(at, at + (min(size, PROBE) if probing and at == 0 else size))
            if pays:
                again[rows] = self._rescore(rows, tables, undecided)
            else:
                self._score_images(rows, tables, reduced=False)
            if probing and at == 0:
                pays = float(again[rows].double().mean()) < WORTHWHILE * len(self.windows)
            at = rows.stop
        return self._found(tables, again)

    def _tables(self, *, with_evidence: bool) -> _ScoreTables:
        """Scores, flips and evidence to be filled in."""
        size = (len(self.images), len(self.windows))
        scores = self.clean.new_zeros(size, dtype=losses.exact(self.clean).dtype)
        flips = torch.empty_like(scores, dtype=torch.bool)
        return _ScoreTables(scores, flips, torch.empty_like(scores) if with_evidence else None)

    def _found(self, tables: _ScoreTables, again: Tensor | None = None) -> Scored:
        maps = (len(self.images), self.windows.rows, self.windows.cols)
        return Scored(tables.scores.view(maps), tables.flips.view(maps), again)

    def _score_images(self, rows: slice, tables: _ScoreTables, *, reduced: bool) -> None:
        """Score every window of some images."""
        first, stop, _ = rows.indices(len(self.images))
        each, clean = len(self.windows), self.clean
        if reduced:
            clean = clean.clone()
            clean[rows] = self.runner(True).clean_logits(first, stop).to(clean.dtype)
        pairs = torch.arange(first * each, stop * each, device=clean.device)
        self.score_pairs(pairs, clean, tables, reduced=reduced)

    def _rescore(self, rows: slice, tables: _ScoreTables, undecided: Undecided) -> Tensor:
        """Settle the scores and flips of some images; how many windows (n,) were scored again.

        How far bfloat16 is off is learned from `losses.evidence`, which suffers alike everywhere.
        """
        assert tables.evidence is not None
        self._score_images(rows, tables, reduced=True)
        self.runner(True).forget()
        scores, exact = tables.scores[rows], tables.evidence[rows]
        rough = exact.clone()
        before = losses.score(self.phi, self.clean, self.classes)[rows, None]
        done = torch.zeros_like(rough, dtype=torch.bool)
        telling = _distinct(rough)
        near = self._sample(scores, telling, undecided)
        # Where noise is what brought them near the question, they are all wrong alike. The window
        # furthest from them shows it.
        centre = _moments(rough, near)[0]
        apart = torch.where(telling, (rough - centre).abs(), -1.0)
        furthest = apart.argmax(1, keepdim=True)
        wanted = near.scatter(1, furthest, True)
        learned = telling.scatter(1, furthest, near.gather(1, furthest))
        while bool(wanted.any()):
            pairs = wanted.flatten().nonzero().flatten() + rows.start * len(self.windows)
            self.score_pairs(pairs, self.clean, tables, reduced=False, again=True)
            done |= wanted
            bias, spread = _moments(rough - exact, done & learned)
            off = (rough - exact - bias).gather(1, furthest).abs()
            after, doubt = self._likely(rough - bias, SPREADS * spread)
            scores.copy_(torch.where(done, scores, before - after))
            doubt += ROUNDING * torch.finfo(doubt.dtype).eps * (1 + before.abs() + after.abs())
            wanted = undecided(scores, torch.where(done, 0.0, doubt)) & ~done
            many = (done | wanted).double().mean(1, keepdim=True) > ENOUGH
            whole = (wanted.any(1, keepdim=True) & many) | (off > NOISE * apart.gather(1, furthest))
            wanted |= whole & ~done
        return done.sum(1)

    def _likely(self, evidence: Tensor, off: Tensor) -> tuple[Tensor, Tensor]:
        """φ of an evidence, and how far it may be off where that may be off by `off`."""
        low, middle, high = (losses.score_of(self.phi, e) for e in (evidence - off, evidence, evidence + off))
        return middle, torch.maximum(high - middle, middle - low)

    def score_pairs(
        self,
        pairs: Tensor,
        clean: Tensor,
        tables: _ScoreTables,
        *,
        reduced: bool,
        again: bool = False,
    ) -> None:
        """Score `pairs` (image·windows + window).

        Raises
        ------
        ValueError
            If a score is not finite; the message names the images.
        """
        scores, flips = tables.scores.view(-1), tables.flips.view(-1)
        before, predicted = losses.score(self.phi, clean, self.classes), clean.argmax(1)
        stage, total = ("re-scoring", len(pairs)) if again else ("occlusion", scores.numel())
        count = 0 if again else int(pairs[0])
        for part, logits in self.runner(reduced).logits(pairs):
            image = part // len(self.windows)
            classes = self.classes[image]
            flips[part] = logits.argmax(1) != predicted[image]
            after = losses.score(self.phi, logits, classes).to(scores.dtype)
            scores[part] = before[image].to(scores.dtype) - after
            if tables.evidence is not None:
                evidence = losses.evidence(self.phi, logits, classes)
                tables.evidence.view(-1)[part] = evidence.to(scores.dtype)
            count += len(part)
            if self.progress:
                self.progress(stage, count, total)
        broken = ~tables.scores.isfinite().all(1)
        if bool(broken.any()):
            raise ValueError(f"model: occlusion scores are not finite for {checks.named(broken)}")

    def runner(self, reduced: bool) -> WindowLogits:
        """Who gives the windows' logits: the compiled model, else the model itself."""
        if self.compiled is not None:
            return self.compiled.runner(reduced=reduced)
        if reduced not in self._dense:
            self._dense[reduced] = DenseRunner(
                self.classifier, self.images, self.windows, self.fill, reduced=reduced,
                backend=self.backend, max_memory=self.max_memory,
            )  # fmt: skip
        return self._dense[reduced]

    def _sample(self, scores: Tensor, telling: Tensor, undecided: Undecided) -> Tensor:
        """Windows to learn from: a tenth of each image's, of those that tell something.

        They are the nearest to the question: the first that are needed as doubt grows. All windows
        where too few tell anything.
        """
        size = scores.shape[1]
        least = min(size, max(LEAST_SAMPLE, round(SAMPLE * size)))
        wanted = torch.ones_like(telling)
        range_ = (scores.amax(1, keepdim=True) - scores.amin(1, keepdim=True)).clamp(min=1e-30)
        # The least doubt, as a power of two of the range, for which enough are needed.
        low, high = torch.full_like(range_, -16.0), torch.zeros_like(range_)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            found = undecided(scores, (range_ * middle.exp2()).expand_as(scores)) & telling
            enough = found.sum(1, keepdim=True) >= least
            wanted = torch.where(enough, found, wanted)
            low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
        return wanted


def _distinct(values: Tensor) -> Tensor:
    """One of each image's windows for each value, (B, windows) bool.

    Windows of the fill's own colour change nothing and are all alike: they tell as much as one.
    """
    ordered = values.sort(1)
    fresh = torch.ones_like(values, dtype=torch.bool)
    fresh[:, 1:] = ordered.values[:, 1:] != ordered.values[:, :-1]
    return torch.zeros_like(fresh).scatter(1, ordered.indices, fresh)


def _moments(off: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the deviations that are known, (B, 1) each."""
    count = known.sum(1, keepdim=True).clamp(min=1)
    bias = torch.where(known, off, 0.0).sum(1, keepdim=True) / count
    square = torch.where(known, (off - bias).square(), 0.0).sum(1, keepdim=True)
    return bias, (square / (count - 1).clamp(min=1)).sqrt()
