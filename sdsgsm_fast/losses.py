"""Losses that an attack follows and scores that an occlusion map measures, both of the logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

LOSSES = ("ce", "margin", "dlr", "jitter")
SCORES = ("prob", "log_prob", "logit", "margin")


JITTER_SCALE = 10.0  # s of equation 12
JITTER_NOISE = 0.1  # its σ


@dataclass(frozen=True)
class Jitter:
    """What equation 12 needs besides logits.

    Attributes
    ----------
    normal
        ``normal(K)`` draws n, (B, K).
    distance
        ``distance(leaf)`` is ‖x_t − x‖_∞, (B,), given the images that are differentiated for.
    """

    normal: Callable[[int], Tensor]
    distance: Callable[[Tensor], Tensor]


def exact(values: Tensor) -> Tensor:
    """Values in float32 at least: sums and differences in half precision lose the signal."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def loss(
    name: str,
    logits: Tensor,
    labels: Tensor,
    target: Tensor | None,
    jitter: Jitter | None = None,
    leaf: Tensor | None = None,
) -> Tensor:
    """Loss of each image: METHOD.md, section 3. Ascended, or descended where `target` is given.

    Parameters
    ----------
    name
        "ce" (cross-entropy), "margin" (Carlini & Wagner 2017: the best other class's logit minus
        the class's own), "dlr" (Croce & Hein 2020: the margin over the logits' spread) or "jitter"
        (Schwinn et al. 2023, equation 12: scaled, noisy, and over the distance of fooled images).
    logits
        (B, K) floating.
    labels, target
        (B,) int64; the true classes, and the classes to reach or None.
    jitter, leaf
        For "jitter": its noise and distances, and the images that are differentiated for; None for
        neither noise nor distances.

    Returns
    -------
    Tensor
        (B,), in float32 at least.

    Raises
    ------
    ValueError
        If "dlr" is asked of a model with fewer than 3 classes (4 for a targeted attack).
    """
    z = exact(logits)
    classes = labels if target is None else target
    if name == "ce":
        return F.cross_entropy(z, classes, reduction="none")
    if name == "margin":
        return -margin(z, classes)
    if name == "jitter":
        return _jitter(z, labels, target, jitter, leaf)
    return _dlr(z, labels, target)


def score(name: str, logits: Tensor, classes: Tensor) -> Tensor:
    """φ of equation 1, (B,): "prob", "log_prob", "logit" or "margin" of each image's class."""
    z = exact(logits)
    if name == "margin":
        return margin(z, classes)
    if name == "prob":
        z = z.softmax(1)
    elif name == "log_prob":
        z = z.log_softmax(1)
    return _at(z, classes)


def evidence(name: str, logits: Tensor, classes: Tensor) -> Tensor:
    """What φ grows with and errors of the logits go into alike, whatever φ is, (B,).

    That is φ itself, but for probabilities, which hardly move near 1, the log-odds; within ±1e15.
    """
    if name not in ("prob", "log_prob"):
        return score(name, logits, classes)
    z = exact(logits)
    others = z.scatter(1, classes[:, None], -torch.inf)
    return (_at(z, classes) - others.logsumexp(1)).clamp(-1e15, 1e15)


def score_of(name: str, evidence: Tensor) -> Tensor:
    """φ of equation 1 from its `evidence`."""
    if name == "prob":
        return evidence.sigmoid()
    return F.logsigmoid(evidence) if name == "log_prob" else evidence


def margin(logits: Tensor, classes: Tensor) -> Tensor:
    """z_c − max_{j≠c} z_j, (B,)."""
    others = logits.scatter(1, classes[:, None], -torch.inf)
    return _at(logits, classes) - others.amax(1)


def _at(values: Tensor, classes: Tensor) -> Tensor:
    return values.gather(1, classes[:, None])[:, 0]


def _dlr(z: Tensor, labels: Tensor, target: Tensor | None) -> Tensor:
    """Difference of logits ratio (Croce & Hein 2020, equations 6 and 7; the second descended)."""
    least = 3 if target is None else 4
    if z.shape[1] < least:
        raise ValueError(f"loss: 'dlr' needs {least} classes, the model has {z.shape[1]}")
    ranked = z.sort(dim=1, descending=True).values
    if target is None:
        return -margin(z, labels) / (ranked[:, 0] - ranked[:, 2] + 1e-12)
    spread = ranked[:, 0] - (ranked[:, 2] + ranked[:, 3]) / 2
    return (_at(z, labels) - _at(z, target)) / (spread + 1e-12)


def _jitter(z: Tensor, labels: Tensor, target: Tensor | None, jitter: Jitter | None, leaf: Tensor | None) -> Tensor:
    """Equation 12."""
    classes = labels if target is None else target
    largest = z.abs().amax(1, keepdim=True)
    found = (JITTER_SCALE * z / largest.clamp(min=torch.finfo(z.dtype).tiny)).softmax(1)
    if jitter is not None:
        found = found + JITTER_NOISE * jitter.normal(z.shape[1]).to(z)
    value = (found - F.one_hot(classes, z.shape[1])).square().mean(1)
    if jitter is None or leaf is None:
        return value
    predicted, away = z.argmax(1), jitter.distance(leaf).to(z.dtype)
    reached = (predicted != labels if target is None else predicted == target) & (away > 0)
    return torch.where(reached, value / torch.where(reached, away, 1), value)
