"""Where an attack's gradient is taken, and how steps are averaged: METHOD.md, equations 8 to 11 and 13."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .common import checks
from .common.noise import DIVERSITY, random_stream

Take = Callable[[Tensor], Tensor]
"""Images (B, C, H, W) to the loss's gradient there."""


@dataclass(frozen=True)
class Iterate:
    """What is known of B images when their gradient is taken.

    Attributes
    ----------
    ahead
        A_t·μ·v with the sign of equation 7, (B, C, H, W); None where it is 0.
    places, restarts, updates
        (B,) each image's place in its data set, its restart and its number of updates, from which
        random numbers are drawn.
    seed
        Seed of the random numbers.
    """

    ahead: Tensor | None
    places: np.ndarray
    restarts: np.ndarray
    updates: np.ndarray
    seed: int


class Extra:
    """One way of taking the gradient otherwise; the base class takes it as it is.

    `order` says where it stands among others, from the outside in; `moves` whether the gradient is
    taken elsewhere than at x_t, which then costs a forward pass of its own.
    """

    order: ClassVar[int] = 0
    moves: ClassVar[bool] = True

    def gradient(self, take: Take, x: Tensor, at: Iterate) -> Tensor:
        """The gradient at `x`, given who takes it."""
        return take(x)

    def check(self, images: Tensor) -> None:
        """Raise ValueError if it cannot serve images (B, C, H, W)."""


@dataclass(frozen=True)
class Kernel(Extra):
    """Smooth the gradient with a Gaussian: equation 11 (TI-FGSM, Dong et al. 2019).

    Parameters
    ----------
    size
        Side of the kernel in pixels, odd.
    reach
        The normal density is taken at `size` places from −reach to reach.

    Raises
    ------
    ValueError
        If a parameter is out of range.
    """

    size: int = 15
    reach: float = 3.0
    order: ClassVar[int] = 0
    moves: ClassVar[bool] = False

    def __post_init__(self) -> None:
        checks.integer("size", self.size, 1)
        if self.size % 2 == 0:
            raise ValueError(f"size: expected an odd integer, found {self.size}")
        checks.number("reach", self.reach, "a number above 0", lambda v: 0 < v < 30)

    def gradient(self, take: Take, x: Tensor, at: Iterate) -> Tensor:
        """K ∗ g, each channel apart, zeros beyond the border."""
        g = take(x)
        weights = _normal_weights(self.size, self.reach).to(g)
        planes, half = g.flatten(0, 1)[:, None], self.size // 2
        smooth = F.conv2d(planes, weights[None, None, :, None], padding=(half, 0))
        return F.conv2d(smooth, weights[None, None, None, :], padding=(0, half)).view_as(g)


@cache
def _normal_weights(size: int, reach: float) -> Tensor:
    density = torch.exp(-(torch.linspace(-reach, reach, size, dtype=torch.float64) ** 2) / 2)
    return density / density.sum()


@dataclass(frozen=True)
class LookAhead(Extra):
    """Take the gradient where the momentum leads: equation 8 (NI-FGSM, Lin et al. 2020).

    Without `decay` there is no momentum, and nothing changes.
    """

    order: ClassVar[int] = 1

    def gradient(self, take: Take, x: Tensor, at: Iterate) -> Tensor:
        """The gradient at x ± A·μ·v."""
        return take(x if at.ahead is None else x + at.ahead)


@dataclass(frozen=True)
class Scales(Extra):
    """Mean gradient over darker copies x/2^i: equation 9 (SI-NI-FGSM, Lin et al. 2020).

    Parameters
    ----------
    count
        S, the number of copies, x itself included; each costs a forward and a backward pass.

    Raises
    ------
    ValueError
        If `count` is out of range.
    """

    count: int = 5
    order: ClassVar[int] = 2

    def __post_init__(self) -> None:
        checks.integer("count", self.count, 1)
        if self.count > 64:
            raise ValueError(f"count: expected at most 64 copies, found {self.count}")

    def gradient(self, take: Take, x: Tensor, at: Iterate) -> Tensor:
        """1/S · Σ ∇L(x/2^i)/2^i, the division of x being part of the chain rule."""
        total = take(x)
        for i in range(1, self.count):
            total = total + take(x / 2**i) / 2**i
        return total / self.count


@dataclass(frozen=True)
class Diversity(Extra):
    """Take the gradient through a random resize and padding: equation 10 (DI-FGSM, Xie et al. 2019).

    Parameters
    ----------
    p
        Probability that an image is resized at an update.
    rate
        Its new height is drawn from ⌊rate·H⌋ … H−1; its width keeps the proportions.

    Raises
    ------
    ValueError
        If a parameter is out of range.

    Notes
    -----
    Draws depend on the seed, the image's place, its restart and its update alone; the copies of
    `Scales` share them.
    """

    p: float = 0.5
    rate: float = 0.9
    order: ClassVar[int] = 3

    def __post_init__(self) -> None:
        checks.number("p", self.p, "a number in [0, 1]", lambda v: 0 <= v <= 1)
        checks.number("rate", self.rate, "a number in (0, 1)", lambda v: 0 < v < 1)

    def check(self, images: Tensor) -> None:
        """Raise ValueError if no smaller size is left to draw."""
        height, width = images.shape[2:]
        if height < 2 or width < 2 or self.rate * height < 1:
            raise ValueError(f"gradient: Diversity cannot make images of {height}×{width} smaller at rate {self.rate}")

    def gradient(self, take: Take, x: Tensor, at: Iterate) -> Tensor:
        """Dᵀ·∇L(D(x))."""
        draws = [
            random_stream(at.seed, *key, kind=DIVERSITY).random(4).tolist()
            for key in zip(at.places.tolist(), at.restarts.tolist(), at.updates.tolist(), strict=True)
        ]
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            moved = torch.cat([self.transformed(leaf[i : i + 1], draw) for i, draw in enumerate(draws)])
        (grad,) = torch.autograd.grad(moved, leaf, take(moved.detach()).to(moved.dtype))
        return grad

    def transformed(self, image: Tensor, draw: Sequence[float]) -> Tensor:
        """D of an image (1, C, H, W), by four numbers in [0, 1): whether, size, top and left."""
        if draw[0] >= self.p:
            return image
        height, width = image.shape[2:]
        least = int(round(self.rate * height, 9))  # 0.57·100 is 57, not 56.99…
        rows = least + int(draw[1] * (height - least))
        cols = max(1, round(rows * width / height))
        top, left = int(draw[2] * (height - rows + 1)), int(draw[3] * (width - cols + 1))
        small = F.interpolate(image, (rows, cols), mode="bilinear", align_corners=False)
        return F.pad(small, (left, width - cols - left, top, height - rows - top))


def ordered(extras: Sequence[Extra]) -> tuple[Extra, ...]:
    """Check what `Attack` was given as `gradient`, and put it into the order of METHOD.md.

    Raises
    ------
    TypeError, ValueError
        If something else is among them, or one kind twice.
    """
    if isinstance(extras, Extra):
        extras = (extras,)
    if not isinstance(extras, Sequence) or not all(isinstance(extra, Extra) for extra in extras):
        raise TypeError(
            f"gradient: expected a list of LookAhead(), Scales(…), Diversity(…) or Kernel(…), found {extras!r}"
        )
    kinds = [type(extra) for extra in extras]
    twice = {kind.__name__ for kind in kinds if kinds.count(kind) > 1}
    if twice:
        raise ValueError(f"gradient: expected one of each kind, found {', '.join(sorted(twice))} twice")
    return tuple(sorted(extras, key=lambda extra: extra.order))


def gradient_at(extras: Sequence[Extra], take: Take, x: Tensor, at: Iterate) -> Tensor:
    """The gradient at `x` as all extras together take it; the first is the outermost."""
    for extra in reversed(extras):
        take = _wrapped(extra, take, at)
    return take(x)


def _wrapped(extra: Extra, take: Take, at: Iterate) -> Take:
    return lambda x: extra.gradient(take, x, at)


@dataclass(frozen=True)
class AdaBelief:
    """Direction by the gradient's mean over its deviation: equation 13 (AB-FGSM, Wang et al. 2022).

    Parameters
    ----------
    beta1, beta2
        β1, β2 in [0, 1), the shares that the averages keep.
    delta
        δ > 0.

    Raises
    ------
    ValueError
        If a parameter is out of range.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    delta: float = 1e-8

    def __post_init__(self) -> None:
        checks.number("beta1", self.beta1, "a number in [0, 1)", lambda v: 0 <= v < 1)
        checks.number("beta2", self.beta2, "a number in [0, 1)", lambda v: 0 <= v < 1)
        checks.number("delta", self.delta, "a finite number above 0", lambda v: 0 < v < math.inf)

    def add_(self, mean: Tensor, spread: Tensor, grad: Tensor) -> None:
        """Take a normalised gradient ĝ into both averages, (B, C, H, W) each, in place."""
        mean.lerp_(grad.to(mean.dtype), 1 - self.beta1)
        off = grad.to(mean.dtype) - mean
        spread.mul_(self.beta2).addcmul_(off, off, value=1 - self.beta2).add_(self.delta)

    def direction(self, mean: Tensor, spread: Tensor, updates: Tensor) -> Tensor:
        """The direction v of equation 13 after `updates` (B,) gradients, at least one."""
        t = updates.double()[:, None, None, None]
        first, second = (1 - self.beta1**t).to(mean.dtype), (1 - self.beta2**t).to(mean.dtype)
        return (mean / first) / ((spread / second).sqrt() + self.delta)
