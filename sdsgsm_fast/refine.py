"""Least distortion of images that are fooled: METHOD.md, equations 15 and 16.

Each function says where to look next. Who asks the model there, and judges, is the loop.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

DAMPING = 0.5  # share of the way to the nearest point of the plane, at the first probe
OVERSHOOT = 0.01  # share of its length that a probe goes beyond the plane
GRID_PROBES = 10  # looks at the model on the grid, at most
GRID_ENOUGH = 6  # looks after which one that fooled suffices
GRID_GROWTH = 4.0  # of an effect beyond 1 that fails
GRID_START = 1 - 1e-6  # effect of the first one, in units of the perturbation's own
GRID_STEP = 0.05  # least excess over 1 that is multiplied by GRID_GROWTH
GRID_BY_SLOPE = 3  # probe from which on, while all have failed, the slope says what to change
GRID_OVERSHOOT = 0.1  # share of the gap that such a probe goes beyond it
GRID_CLOSE = 1.01  # ratio of effects that is not worth another look


def probes(refine: int) -> int:
    """Points that `refine` passes look at: one pass for each, and one for each gradient."""
    return (refine + 1) // 2


def needs_gradient(probe: npt.NDArray[np.int64], refine: int) -> npt.NDArray[np.bool_]:
    """Whether probes, from 1 on, are chosen by a gradient; of an odd number of passes the first is not."""
    return (refine % 2 == 0) | (probe > 1)


def by_slope(probe: npt.NDArray[np.int64], won: npt.NDArray[np.int64], refine: int) -> npt.NDArray[np.bool_]:
    """Whether probes go by the slope on the grid; `won` says how many on the grid have fooled."""
    found: npt.NDArray[np.bool_] = (probe - probes(refine) >= GRID_BY_SLOPE) & (won == 0)
    return found


def damping(probe: Tensor, count: int) -> Tensor:
    """How far probes go towards the nearest point: less each time, and the last not at all."""
    return DAMPING * (count - probe) / max(1, count - 1)


def next_probe(
    images: Tensor, adv: Tensor, slope: Tensor, gap: Tensor, low: Tensor, high: Tensor, share: Tensor
) -> Tensor:
    """A point nearer to the image, about as far beyond the boundary as rounding and curvature need.

    Where the model is linear, gap(z) = gap + slope·(z − adv), this is the damped iteration of
    Hasofer, Lind, Rackwitz and Fiessler for the nearest point of gap(z) = 0: back to the plane along
    the slope, and by a share of the way to the foot of the perpendicular from the image.

    Parameters
    ----------
    images, adv
        (B, C, H, W) the clean images, and the points that were looked at.
    slope, gap
        Gradient (B, C, H, W) and value (B,) of what is below 0 where the image is fooled.
    low, high
        (B, C, H, W) the least and the largest value that each pixel may take.
    share
        (B,) in [0, 1], see `damping`.
    """
    # A pixel without room in the direction in which the slope would move it does not count.
    room = torch.where(slope > 0, images - low, high - images)
    slope = torch.where(room > 0, slope, 0)
    squares = slope.double().square().sum((1, 2, 3)).clamp(min=1e-30)
    delta = adv - images
    along = (slope.double() * delta).sum((1, 2, 3))
    back, foot = ((value / squares).to(slope.dtype)[:, None, None, None] for value in (gap, along))
    share = share.to(delta.dtype)[:, None, None, None]
    moved = delta - back * slope + share * (foot * slope - delta)
    return (images + (1 + OVERSHOOT) * moved).maximum(low).minimum(high)


class Grid:
    """Points of a grid of values in the direction of perturbations: equation 16.

    Parameters
    ----------
    images, delta
        (B, C, H, W) the clean images and their perturbations.
    low, high
        (B, C, H, W) the least and the largest value that each pixel may take.
    levels
        L, the number of values from `bounds`' lo to hi.
    bounds
        (lo, hi).
    """

    def __init__(
        self, images: Tensor, delta: Tensor, low: Tensor, high: Tensor, levels: int, bounds: tuple[float, float]
    ) -> None:
        self.dtype, self.levels, self.bounds = images.dtype, levels, bounds
        size = max(map(abs, bounds)) / (bounds[1] - bounds[0])
        self.rounding = 8 * torch.finfo(images.dtype).eps * (levels - 1) * max(1.0, size)
        self.start = self._index(images)
        self.delta = delta.double() * ((levels - 1) / (bounds[1] - bounds[0]))
        # What lies between two values of the grid has the nearest one, even beyond its ε.
        nearest = self.start.round()
        self.low = self._index(low).ceil().minimum(nearest)
        self.high = self._index(high).floor().maximum(nearest)

    def _index(self, values: Tensor) -> Tensor:
        """Values as places on the grid, those that rounding took off it put back."""
        lo, hi = self.bounds
        place = (values.double() - lo) * ((self.levels - 1) / (hi - lo))
        whole = place.round()
        return torch.where((place - whole).abs() < self.rounding, whole, place)

    def _places(self, addend: Tensor) -> Tensor:
        """Equation 16 with 1 − τ = addend (B,), a whole number of 0 or more: n moves all pixels n values further."""
        size = self.delta.abs() + addend[:, None, None, None]
        up, down = (self.start + size).floor(), (self.start - size).ceil()
        moved = torch.where(self.delta > 0, up, torch.where(self.delta < 0, down, self.start.round()))
        return moved.maximum(self.low).minimum(self.high)

    def _values(self, places: Tensor) -> Tensor:
        lo, hi = self.bounds
        return (places / (self.levels - 1) * (hi - lo) + lo).to(self.dtype)

    def nearest(self) -> Tensor:
        """The perturbed images rounded, within what each pixel may take."""
        return self._values((self.start + self.delta).round().maximum(self.low).minimum(self.high))

    def with_effect(self, effect: Tensor) -> Tensor:
        """The least change on the grid with so much effect (B,), in units of the perturbation's own.

        The effect of a change is its product with the perturbation, which at the nearest point of a
        boundary points along the slope. What is out of reach is answered with all that there is.
        """
        wanted = effect.double() * self.delta.square().sum((1, 2, 3))
        whole = self._whole(wanted)
        below, above = self._places(whole), self._places(whole + 1)
        # Between two whole addends each pixel moves once, the one nearest to its next value first.
        end = self.start + self.delta
        rest = torch.where(self.delta > 0, end.floor() + 1 - end, end - end.ceil() + 1)
        order = rest.flatten(1).argsort(dim=1, stable=True)
        gains = ((above - below) * self.delta).flatten(1).gather(1, order)
        reached = self._effect(below)[:, None] + gains.cumsum(1) - gains < wanted[:, None]
        moves = torch.zeros_like(reached).scatter(1, order, reached).view_as(below)
        return self._values(torch.where(moves, above, below))

    def towards(self, adv: Tensor, slope: Tensor, gap: Tensor) -> Tensor:
        """The fewest pixels of `adv` moved by a value of the grid that close a gap (B,), by its slope.

        Near an edge of the boundary the perturbation's direction says little a value further on.
        """
        places, slope = self._index(adv).round(), slope.double()
        moved = (places - slope.sign()).maximum(self.low).minimum(self.high)
        lo, hi = self.bounds
        gains = ((places - moved) * slope).flatten(1) * ((hi - lo) / (self.levels - 1))
        gains, order = gains.sort(dim=1, descending=True, stable=True)
        wanted = (1 + GRID_OVERSHOOT) * gap.double()
        needed = (gains.cumsum(1) - gains < wanted[:, None]) & (gains > 0)
        moves = torch.zeros_like(needed).scatter(1, order, needed).view_as(places)
        return self._values(torch.where(moves, moved, places))

    def _whole(self, wanted: Tensor) -> Tensor:
        """The largest whole addend (B,) whose effect is not enough; 0 at least."""
        least, enough = torch.zeros_like(wanted), torch.full_like(wanted, float(self.levels))
        enough = torch.where(self._effect(self._places(least + 1)) >= wanted, least + 1, enough)
        while bool((enough - least > 1).any()):
            middle = ((least + enough) / 2).floor()
            reached = self._effect(self._places(middle)) >= wanted
            enough, least = torch.where(reached, middle, enough), torch.where(reached, least, middle)
        return least

    def _effect(self, places: Tensor) -> Tensor:
        return ((places - self.start) * self.delta).sum((1, 2, 3))


def effect_of(change: Tensor, delta: Tensor) -> Tensor:
    """Effect (B,) of a change along a perturbation, in units of the perturbation's own."""
    exact = delta.double()
    return (change.double() * exact).sum((1, 2, 3)) / exact.square().sum((1, 2, 3))


def next_effect(failed: Tensor, fooled: Tensor) -> Tensor:
    """The effect (B,) to try next: halfway between the largest that failed and the least that fooled.

    The first look has the perturbation's own effect; a second, after a failure, more of it.
    """
    more = 1 + GRID_GROWTH * (failed - 1).clamp(min=GRID_STEP)
    untried = torch.where(failed > 0, more, GRID_START)
    return torch.where(fooled.isinf(), untried, (failed + fooled) / 2)
