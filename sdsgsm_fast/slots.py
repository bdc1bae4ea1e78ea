"""Slots of the attack loop: which images they hold, and what is known of each."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from . import refine
from .common.host import to_device
from .common.numerics import Setting, allocation, column
from .gradients import AdaBelief, Extra
from .model.memory import is_shortage
from .search import Flags, spec_of

Ints = npt.NDArray[np.int64]

COUNTS = ("row", "place", "restart", "updates", "earlier", "stage", "grid_fooled", "forward", "backward")
SLOT = np.dtype([("owner", object)] + [(k, np.int64) for k in COUNTS])
"""What the host keeps of a slot: its image's batch, row and place, and counts.

"earlier" are the updates of earlier restarts. "stage" is 0 while the image is not fooled; then 1 to
n name the probe along the boundary that is next, n + 1 and more the probe on the grid, and beyond
`LoopSettings.probes` the image is done. "grid_fooled" says how many probes on the grid have fooled.
"""

SLOT_DATA = ("images", "labels", "target", "domain", "eps", "alpha", "background")
"""Tensors that a slot has of its batch; besides these it has "adv" and what `Slots` adds."""


@dataclass
class Batch:
    """Images that have been looked at: what the loop starts from, and what it finds out.

    Attributes
    ----------
    images, labels, target
        (B, C, H, W), (B,) and (B,) or None.
    domain
        m (B, H, W); None for m ≡ 1.
    eps, alpha, background
        Numbers, or (B,) tensors.
    grad
        ∇L of the clean images; None where the attack starts elsewhere.
    places
        (B,) the images' places in their data set.
    grad_counted
        Whether the pass that gave `grad` is in `backward` already (`Gradient` domains).
    todo
        (B,) bool, the images to be attacked.
    forward, backward
        (B,) passes so far; the loop adds its own.
    adv, success, updates
        The result of each image: the clean one, False and 0 until it is done.
    waiting
        Rows that have had no slot yet.
    left
        Number of images that are not done.
    """

    images: Tensor
    labels: Tensor
    target: Tensor | None
    domain: Tensor | None
    eps: Setting
    alpha: Setting
    background: Setting
    grad: Tensor | None
    places: Ints
    todo: Flags
    forward: Ints
    backward: Ints
    grad_counted: bool
    adv: Tensor = field(init=False)
    success: Flags = field(init=False)
    updates: Ints = field(init=False)
    waiting: Ints = field(init=False)
    left: int = field(init=False)

    def __post_init__(self) -> None:
        self.adv = self.images.clone()
        self.success, self.updates = np.zeros_like(self.todo), np.zeros_like(self.forward)
        self.waiting = self.todo.nonzero()[0]
        self.left = len(self.waiting)


@dataclass(frozen=True)
class LoopSettings:
    """The settings of `Attack` that the loop follows."""

    steps: int
    restarts: int
    early_stop: bool
    random_start: bool
    relax: float | None
    gain: float
    decay: float
    normalize: str
    loss: str
    bounds: tuple[float, float]
    backend: str
    gradient: Sequence[Extra]
    moments: AdaBelief | None
    growth: float
    refine: int
    levels: int | None

    @property
    def gradient_moves(self) -> bool:
        """Whether gradients are taken at other points than the iterates."""
        return any(extra.moves for extra in self.gradient)

    @property
    def late(self) -> bool:
        """Whether the first update needs another gradient than that of the clean images."""
        return self.random_start or self.gradient_moves or self.loss == "jitter"

    @property
    def probes(self) -> int:
        """Looks at the model that an image gets once it is fooled, at most."""
        return self.boundary_probes + (refine.GRID_PROBES if self.levels else 0)

    @property
    def boundary_probes(self) -> int:
        """Those of them along the boundary."""
        return refine.probes(self.refine)


class Slots:
    """A fixed number of places for images that are attacked; an image that is done makes room.

    Each has an image, its iterate and its own number of updates (equation 4), so images come and go
    at any step.

    Parameters
    ----------
    settings
        What to do with the images.
    size
        Images that are attacked at once.

    Attributes
    ----------
    data
        Tensors by name, a row for each slot, of which the first are in use.
    numbers
        Those of ε, α and β that are one for all.
    used
        What the host keeps of each slot in use (`SLOT`).
    """

    def __init__(self, settings: LoopSettings, size: int) -> None:
        self.settings, self.size = settings, size
        self.queue: deque[Batch] = deque()
        self.data: dict[str, Tensor] = {}
        self.numbers: dict[str, float] = {}
        self.used = np.zeros(0, dtype=SLOT)

    @property
    def waiting(self) -> int:
        """Images that have no slot yet."""
        return sum(len(batch.waiting) for batch in self.queue)

    def fill(self, *, channels_last: Callable[[Tensor], bool]) -> list[tuple[slice, Tensor | None]]:
        """Give free slots to images that wait; returns which, and their gradients where known.

        ``channels_last(images)`` says whether images of that kind are kept so.
        """
        entered = []
        while self.queue and len(self.used) < self.size:
            batch = self.queue[0]
            if len(self.used) and not self._fits(batch):
                break
            if not len(self.used):
                self._allocate(batch, channels_last=channels_last(batch.images))
            entered.append(self._enter(batch, self.size - len(self.used)))
            if not len(batch.waiting):
                self.queue.popleft()
        return entered

    def _fits(self, batch: Batch) -> bool:
        """Whether a batch's images are of the kind that the slots hold."""
        same = spec_of(self.data["images"]) == spec_of(batch.images)
        return same and (batch.target is None) == ("target" not in self.data)

    def _enter(self, batch: Batch, room: int) -> tuple[slice, Tensor | None]:
        """Put the next images into slots."""
        rows, batch.waiting = batch.waiting[:room], batch.waiting[room:]
        first = len(self.used)
        slots = slice(first, first + len(rows))
        in_order = rows[-1] - rows[0] == len(rows) - 1  # copied at once rather than gathered
        index = slice(rows[0], rows[-1] + 1) if in_order else self.on_device(rows)
        for name in SLOT_DATA:
            if name in self.data:
                self.data[name][slots] = getattr(batch, name)[index]
        self.data["adv"][slots] = self.data["images"][slots]
        self.forget(slots)
        new = np.zeros(len(rows), dtype=SLOT)
        new["owner"], new["row"], new["place"] = batch, rows, batch.places[rows]
        self.used = np.concatenate((self.used, new))
        if batch.grad is None:
            return slots, None
        self.used["backward"][slots] += not batch.grad_counted
        return slots, batch.grad[index]

    def forget(self, slots: slice | Tensor) -> None:
        """Set the averages of past gradients to zero."""
        for name in ("momentum", "mean", "spread"):
            if name in self.data:
                self.data[name][slots] = 0

    def _allocate(self, batch: Batch, *, channels_last: bool) -> None:
        """Make room for images of a new kind; no slot is in use. Where memory is short, for fewer."""
        while True:
            self.data = {}
            try:
                return self._allocate_all(batch, channels_last=channels_last)
            except RuntimeError as error:
                if self.size == 1 or not is_shortage(error):
                    raise
                self.size //= 2

    def _allocate_all(self, batch: Batch, *, channels_last: bool) -> None:
        """The tensors of all slots."""
        s, values = self.settings, {name: getattr(batch, name) for name in SLOT_DATA}
        self.numbers = {k: v for k, v in values.items() if isinstance(v, float)}
        self.data = {k: v[:1].new_empty((self.size, *v.shape[1:])) for k, v in values.items() if isinstance(v, Tensor)}
        images = self.data["images"]
        if channels_last:  # gradients have that layout
            images = self.data["images"] = images.to(memory_format=torch.channels_last)
        names = ["adv"]
        names += ["mean", "spread"] if s.moments else ["momentum"] if s.decay else []
        names += ["best"] if s.probes else []
        names += ["best_on_grid"] if s.levels else []
        self.data |= {name: torch.empty_like(images) for name in names}
        if s.probes:
            numbers = ("l2", "gap", "largest_failed", "least_fooled")
            self.data |= {name: images.new_zeros(self.size).double() for name in numbers}

    def retire(self, done: Flags, success: Flags, adv: Tensor) -> None:
        """Hand the results of images that are done, in their order, to their batches."""
        slots = done.nonzero()[0]
        owners = self.used["owner"][slots]
        for batch in {id(owner): owner for owner in owners}.values():
            rows_of_adv = np.array([i for i, owner in enumerate(owners) if owner is batch])
            chosen = slots[rows_of_adv]
            mine, rows = self.used[chosen], self.used["row"][chosen]
            batch.adv[self.on_device(rows)] = adv[self.on_device(rows_of_adv)]
            batch.success[rows] = success[chosen]
            batch.updates[rows] = mine["earlier"] + mine["updates"]
            batch.forward[rows] += mine["forward"]
            batch.backward[rows] += mine["backward"]
            batch.left -= len(rows)

    def close_gaps(self, going: Flags, again: Flags, grad: Tensor) -> Tensor:
        """Move up those who go on, then those who start again; returns the former's gradients."""
        ready = int(going.sum())
        if ready < len(self.used):
            kept = np.concatenate((going.nonzero()[0], again.nonzero()[0]))
            index = self.on_device(kept)
            for value in self.data.values():
                value[: len(kept)] = value[index]
            grad = grad[index[:ready]]
            self.used = self.used[kept]
            self.used["restart"][ready:] += 1
            self.used["earlier"][ready:] += self.used["updates"][ready:]
            self.used["updates"][ready:] = 0
            self.used["stage"][ready:] = self.used["grid_fooled"][ready:] = 0
        return grad

    def of(self, name: str, slots: slice | Ints) -> Tensor | None:
        """What some slots hold; None where they hold no such thing."""
        if name not in self.data:
            return None
        return self.data[name][slots if isinstance(slots, slice) else self.on_device(slots)]

    def get(self, name: str, slots: slice | Ints) -> Tensor:
        """What some slots hold of what all of them have."""
        found = self.of(name, slots)
        assert found is not None, name
        return found

    def setting(self, name: str, slots: slice | Ints) -> Setting:
        """ε, α or β of some slots."""
        found = self.of(name, slots)
        return self.numbers[name] if found is None else found

    def alpha(self, slots: slice | Ints) -> Setting:
        """α_t of equation 14; in double, so that one number for all gives the same as many."""
        base, growth = self.setting("alpha", slots), self.settings.growth
        if growth == 1:
            return base
        # A step beyond 1e30 times the first would only overflow.
        updates = np.minimum(self.used["updates"][slots], 30 * np.log(10) / np.log(growth))
        grown = self.on_device(growth**updates)
        base = base.double() if isinstance(base, Tensor) else base
        return (base * grown).to(self.data["images"].dtype)

    def background(self, slots: slice | Ints, *, before: int = 0) -> Setting:
        """β_t of equation 4, `before` updates ago; in double, as `alpha`."""
        base, relax = self.setting("background", slots), self.settings.relax
        if relax is None:
            return base
        images = self.data["images"]
        updates = np.maximum(self.used["updates"][slots] - before, 0)
        grown = np.minimum(1.0, updates / (relax * self.settings.steps))
        share = self.on_device(grown)
        base = base.double() if isinstance(base, Tensor) else base
        return (base + (1.0 - base) * share).to(images.dtype)

    def limits(self, slots: Ints) -> tuple[Tensor, Tensor]:
        """The least and the largest value of each pixel at the last update (equations 3 and 7)."""
        images, (lo, hi) = self.get("images", slots), self.settings.bounds
        share = allocation(self.background(slots, before=1), self.of("domain", slots))
        budget = column(self.setting("eps", slots)) * share
        return (images - budget).clamp(min=lo).to(images.dtype), (images + budget).clamp(max=hi).to(images.dtype)

    def on_device(self, values: npt.NDArray[Any]) -> Tensor:
        """What the host knows of slots, on the device."""
        return to_device(values, self.data["images"].device)

    def replace(self, name: str, part: slice, rows: Tensor, where: Tensor, values: Tensor) -> None:
        """Have some rows of a part hold other values where a flag says so."""
        held = self.data[name][part]
        flags = where.view(-1, *[1] * (held.ndim - 1))
        held[rows] = torch.where(flags, values, held[rows])
