"""A step of everything that the operators do."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sdsgsm_fast import ops

NUMBERS = (0.1, 0.02, 0.5, 1.0, 0.9, 0.0, 1.0, 1.0)


STEP: dict[str, Any] = {"eps": 0.1, "alpha": 0.02, "background": 0.5}


def passes(results: dict[str, str]) -> bool:
    return len(results) == 4 and all(outcome == "SUCCESS" for outcome in results.values())


def step(adv: Tensor, images: Tensor, domain: Tensor, momentum: Tensor, eps: Tensor) -> Any:
    """Everything that the operators do, between other operations."""
    copies = ops.occlude(images, 0, 4, patch=4, fill=0.5, mean=0.4, std=0.2)
    scores = copies.unflatten(0, (len(images), 4)).mean((2, 3, 4))
    weight = ops.window_mean(scores, 8, 8, patch=4).sigmoid() * domain
    grad = (adv * 3).sin()
    new, v = ops.update(adv, images, grad, weight, momentum=momentum, **{**STEP, "eps": eps})
    new, v = ops.update_(new + 0, images, grad, domain, momentum=v, decay=0.5, **STEP)
    adv, fresh = ops.update_(adv, images, new, None, decay=0.5, gain=2, **STEP)
    return new * 2, v, adv, fresh, copies
