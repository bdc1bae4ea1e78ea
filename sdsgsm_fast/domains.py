"""Decision-dependent domains: which pixels may change by the full ε. METHOD.md, section 1."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import losses
from .common import checks
from .common.progress import Progress
from .common.windows import Pair, Windows, as_pair
from .kernels import ops
from .model.classifier import Classifier
from .occlusion import METHODS, Fill, Scorer, check_fill, of_one_batch

RULES = ("top", "threshold", "flip", "soft")

DomainFunction = Callable[[Classifier, Tensor, Tensor], Tensor]
"""``domain(classifier, images, labels)`` → m (B, H, W) in [0, 1]."""


@dataclass(frozen=True)
class CleanBatch:
    """What is known of a batch before the attack: the evaluation of the clean images.

    Attributes
    ----------
    images, logits
        (B, C, H, W) and (B, K).
    labels, target
        (B,) true classes; classes to reach, or None.
    grad
        ∇L of the clean images, (B, C, H, W); None where nothing asked for it.
    """

    classifier: Classifier
    images: Tensor
    labels: Tensor
    target: Tensor | None
    logits: Tensor
    grad: Tensor | None

    @property
    def predicted(self) -> Tensor:
        """Predicted classes, (B,)."""
        return self.logits.argmax(1)

    def of(self, rows: Tensor) -> CleanBatch:
        """Some of the images."""
        target, grad = (None if value is None else value[rows] for value in (self.target, self.grad))
        return CleanBatch(self.classifier, self.images[rows], self.labels[rows], target, self.logits[rows], grad)


@dataclass(frozen=True)
class DomainResult:
    """A domain m (B, H, W), and what `Occlusion` found out.

    That is the scores S (B, rows, cols) and, where it searched in bfloat16, how many windows of
    each image were scored again, (B,).
    """

    domain: Tensor
    scores: Tensor | None = None
    rescored: Tensor | None = None

    def among(self, rows: Tensor, count: int) -> DomainResult:
        """The same among `count` images; zeros for the others."""

        def spread(found: Tensor) -> Tensor:
            return found.new_zeros((count, *found.shape[1:])).index_copy_(0, rows, found)

        scores, rescored = (None if found is None else spread(found) for found in (self.scores, self.rescored))
        return DomainResult(spread(self.domain), scores, rescored)


def decision_domain(
    map: Tensor,
    *,
    rule: str = "top",
    coverage: float = 0.25,
    threshold: float = 0.5,
    flips: Tensor | None = None,
    patch: Pair | None = None,
    stride: Pair | None = None,
) -> Tensor:
    """Turn a sensitivity map into a domain: METHOD.md, section 1.

    Parameters
    ----------
    map
        (B, H, W) floating sensitivities s.
    rule
        "top": the ⌈coverage·H·W⌉ largest, of equal ones the first in row-major order.
        "threshold": s ≥ threshold·max s; everything where max s ≤ 0.
        "flip": the union of the windows in `flips`; where an image has none, "top".
        "soft": max(s, 0)/max s; everything where max s ≤ 0.
    coverage
        Share of the pixels in the domain, in (0, 1].
    threshold
        Share of the largest sensitivity, in [0, 1].
    flips
        (B, rows, cols) or (B, rows·cols) bool: windows whose zero-out changes the predicted class;
        for "flip" only.
    patch, stride
        The windows of `flips`, as in `occlusion_map`.

    Returns
    -------
    Tensor
        (B, H, W) in [0, 1], in the dtype of `map`.

    Raises
    ------
    ValueError, TypeError
        If an argument has a wrong shape, dtype or value.
    """
    _check_rule(rule, coverage, threshold)
    if map.ndim != 3 or not map.is_floating_point():
        raise ValueError(f"map: expected a floating (B, H, W), found {map.dtype} of shape {tuple(map.shape)}")
    if not bool(map.isfinite().all()):
        raise ValueError("map: expected finite values")
    if not map.numel():
        return map.clone()
    if rule == "top":
        return _top(map, coverage)
    if rule == "flip":
        return _flip(map, coverage, flips, patch, stride)
    most = map.amax((1, 2), keepdim=True)
    kept = (map >= threshold * most).to(map.dtype) if rule == "threshold" else map.relu() / most
    return torch.where(most > 0, kept, torch.ones_like(map))


def _top(map: Tensor, coverage: float) -> Tensor:
    """Mark the n largest of each image; a stable sort settles ties by position."""
    flat = map.flatten(1)
    count = top_count(coverage, flat.shape[1])
    chosen = flat.argsort(dim=1, descending=True, stable=True)[:, :count]
    return torch.zeros_like(flat).scatter_(1, chosen, 1.0).view_as(map)


def top_count(coverage: float, pixels: int) -> int:
    """N of rule "top": ⌈coverage·pixels⌉."""
    # Rounding first keeps 0.1·30 = 3.0000000000000004 from asking for a fourth pixel.
    return max(1, math.ceil(round(coverage * pixels, 9)))


def _flip(map: Tensor, coverage: float, flips: Tensor | None, patch: Pair | None, stride: Pair | None) -> Tensor:
    if flips is None or patch is None:
        raise ValueError("flips: rule 'flip' needs flips and patch")
    windows = Windows.over(map.shape[1], map.shape[2], patch, stride)
    flat = flips.flatten(1).bool()
    checks.same_shape("flips", flat, (len(map), len(windows)))
    union = torch.zeros_like(map)
    for k, (rows, cols) in enumerate(windows):
        union[:, rows, cols] = union[:, rows, cols].maximum(flat[:, k, None, None].to(map.dtype))
    return torch.where(flat.any(1)[:, None, None], union, _top(map, coverage))


def _check_rule(rule: str, coverage: float, threshold: float) -> None:
    checks.choice("rule", rule, RULES)
    checks.number("coverage", coverage, "a number in (0, 1]", lambda v: 0 < v <= 1)
    checks.number("threshold", threshold, "a number in [0, 1]", lambda v: 0 <= v <= 1)


@dataclass(frozen=True)
class UndecidedWindows:
    """Says which windows' exact scores decide a domain, given how far each score may be off."""

    windows: Windows
    rule: str
    coverage: float
    threshold: float
    backend: str

    def sensitivity_map(self, scores: Tensor) -> Tensor:
        """Equation 2, (B, H, W)."""
        w = self.windows
        return ops.window_mean(scores, w.height, w.width, patch=w.patch, stride=w.stride, backend=self.backend)

    def __call__(self, scores: Tensor, doubt: Tensor) -> Tensor:
        """Windows in doubt over a pixel whose place the doubt leaves open, (B, windows) bool."""
        sensitivity_map, off = self.sensitivity_map(scores).flatten(1), self.sensitivity_map(doubt).flatten(1)
        open_ = self._near_top if self.rule == "top" else self._near_threshold
        pixels = open_(sensitivity_map - off, sensitivity_map + off).view(-1, self.windows.height, self.windows.width)
        return self._covering(pixels) & (doubt > 0)

    def _near_top(self, low: Tensor, high: Tensor) -> Tensor:
        """Pixels that are neither surely among the n largest nor surely not."""
        count = top_count(self.coverage, low.shape[1])
        if count == low.shape[1]:
            return torch.zeros_like(low, dtype=torch.bool)
        least = low.sort(dim=1, descending=True).values[:, count - 1 : count]
        most = high.sort(dim=1, descending=True).values[:, count : count + 1]
        return (high >= least) & (low <= most)

    def _near_threshold(self, low: Tensor, high: Tensor) -> Tensor:
        """Pixels that may be the largest, and those whose side of τ·max is not sure."""
        least, most = low.amax(1, keepdim=True), high.amax(1, keepdim=True)
        largest = high >= least
        cut_low, cut_high = self.threshold * least.clamp(min=0), self.threshold * most.clamp(min=0)
        return largest | ((high >= cut_low) & (low < cut_high))

    def _covering(self, pixels: Tensor) -> Tensor:
        """Windows (B, windows) over any of the pixels (B, H, W)."""
        w = self.windows
        bottom, right = w.overhang
        whole = F.pad(pixels.float(), (0, right, 0, bottom))[:, None]
        return F.max_pool2d(whole, w.patch, w.stride)[:, 0].flatten(1) > 0


@dataclass(frozen=True)
class Occlusion:
    """Domain from occlusion sensitivity: METHOD.md, section 1.

    Parameters
    ----------
    patch, stride
        Size and distance of the windows in pixels, an int or (rows, columns); `stride` defaults to
        `patch`.
    fill
        What zeroed-out pixels become: a value, one a channel, a tensor (C, H, W) or (B, C, H, W),
        "mean" or "blur", as in `occlusion_map`.
    score
        "prob", "log_prob", "logit" or "margin".
    rule, coverage, threshold
        As in `decision_domain`.
    method
        "auto", "dense" or "incremental", as in `occlusion_scores`.

    Raises
    ------
    ValueError
        If a setting is out of range.

    Notes
    -----
    With the attack's precision "auto" the windows are searched in bfloat16 where the device gains
    from it, and those near the cut scored again in float32 until the domain is the float32 one. The
    rules "flip" and "soft" have no such cut: they take float32 throughout.
    """

    patch: Pair = 4
    stride: Pair | None = None
    fill: Fill = 0.0
    score: str = "prob"
    rule: str = "top"
    coverage: float = 0.25
    threshold: float = 0.5
    method: str = "auto"

    def __post_init__(self) -> None:
        checks.choice("method", self.method, METHODS)
        patch = as_pair("patch", self.patch)
        Windows.over(*patch, patch, self.stride)
        checks.choice("score", self.score, losses.SCORES)
        _check_rule(self.rule, self.coverage, self.threshold)

    def check(self, images: Tensor) -> None:
        """Raise ValueError if the windows or the fill do not fit images (B, C, H, W)."""
        self.windows(images)
        check_fill(self.fill, images)

    def windows(self, images: Tensor) -> Windows:
        """Windows over images (B, C, H, W)."""
        return Windows.over(images.shape[2], images.shape[3], self.patch, self.stride)

    def __call__(self, classifier: Classifier, images: Tensor, labels: Tensor) -> Tensor:
        """Domain (B, H, W) of images (B, C, H, W) for the classes `labels` (B,)."""
        self.check(images)
        with classifier.frozen():
            logits = classifier.logits(images)
            clean = CleanBatch(classifier, images, labels, None, logits, None)
            return self.measure(clean).domain

    def measure(
        self,
        clean: CleanBatch,
        *,
        backend: str = "auto",
        max_memory: int | None = None,
        progress: Progress | None = None,
    ) -> DomainResult:
        """Domain and scores; c is the true class, or the predicted one of a targeted attack."""
        images = clean.images
        windows = self.windows(images)
        classes = clean.labels if clean.target is None else clean.predicted
        undecided = UndecidedWindows(windows, self.rule, self.coverage, self.threshold, backend)
        scorer = Scorer(
            clean.classifier, images, classes, clean.logits,
            windows=windows, score=self.score, fill=self.fill, method=self.method,
            backend=backend, max_memory=max_memory, progress=progress,
        )  # fmt: skip
        found = scorer.score(undecided if self.rule in ("top", "threshold") else None)
        domain = decision_domain(
            undecided.sensitivity_map(found.scores), rule=self.rule, coverage=self.coverage,
            threshold=self.threshold, flips=found.flips, patch=self.patch, stride=self.stride,
        )  # fmt: skip
        return DomainResult(domain, found.scores, found.rescored)


@dataclass(frozen=True)
class Gradient:
    """Domain from s = Σ_channels |∇_x L(x)|, which needs no occlusion.

    Parameters
    ----------
    rule, coverage, threshold
        As in `decision_domain`; "flip" needs windows and is not available.

    Raises
    ------
    ValueError
        If a setting is out of range.
    """

    rule: str = "top"
    coverage: float = 0.25
    threshold: float = 0.5

    def __post_init__(self) -> None:
        checks.choice("rule", self.rule, [rule for rule in RULES if rule != "flip"])
        _check_rule(self.rule, self.coverage, self.threshold)

    def __call__(self, classifier: Classifier, images: Tensor, labels: Tensor) -> Tensor:
        """Domain (B, H, W) of images (B, C, H, W) from the cross-entropy of `labels` (B,)."""
        with classifier.frozen():
            logits, leaf = classifier.logits_and_leaf(images, search=True)
            grad = classifier.gradient(losses.loss("ce", logits, labels, None), leaf)
        checks.finite_gradient(grad)
        return self.of(grad)

    def of(self, grad: Tensor) -> Tensor:
        """Domain of a gradient (B, C, H, W)."""
        return decision_domain(
            losses.exact(grad).abs().sum(1),
            rule=self.rule,
            coverage=self.coverage,
            threshold=self.threshold,
        )


Domain = Occlusion | Gradient | Tensor | DomainFunction | None


def compute_domain(
    domain: Domain,
    clean: CleanBatch,
    measured: Tensor,
    *,
    backend: str,
    max_memory: int | None,
    progress: Progress | None,
) -> DomainResult:
    """Domain of a batch from whatever the user gave, without gradient.

    Of images that are not to be `measured`, (B,) bool, no windows are scored.

    Raises
    ------
    ValueError, TypeError
        If a callable returns anything but a floating (B, H, W) in [0, 1] on the images' device.
    """
    images = clean.images
    if domain is None:
        return DomainResult(images.new_ones((1, *images.shape[2:])).expand(len(images), -1, -1))
    if isinstance(domain, Tensor):
        return DomainResult(domain.detach())
    if isinstance(domain, Occlusion):
        return _by_windows(domain, clean, measured, backend=backend, max_memory=max_memory, progress=progress)
    if isinstance(domain, Gradient) and clean.grad is not None:
        return DomainResult(domain.of(clean.grad))
    with torch.enable_grad():
        mask = domain(clean.classifier, images.clone(), clean.labels)
    checks.domain_tensor(mask, images)
    return DomainResult(mask.detach())


def _by_windows(domain: Occlusion, clean: CleanBatch, measured: Tensor, **how: Any) -> DomainResult:
    """Domain and scores of the images that are to be measured; zeros of the others."""
    if bool(measured.all()):
        return domain.measure(clean, **how)
    rows, count, windows = measured.nonzero().flatten(), len(measured), domain.windows(clean.images)
    if not len(rows):
        scores = clean.logits.new_zeros((count, windows.rows, windows.cols), dtype=losses.exact(clean.logits).dtype)
        return DomainResult(clean.images.new_zeros((count, windows.height, windows.width)), scores)
    fill = domain.fill
    mine = replace(domain, fill=fill[rows]) if isinstance(fill, Tensor) and of_one_batch(fill) else domain
    return mine.measure(clean.of(rows), **how).among(rows, count)
