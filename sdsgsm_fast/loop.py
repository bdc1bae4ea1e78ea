"""The loop of METHOD.md, section 3, over slots: an image that is done makes room for the next."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .common import checks
from .common.noise import uniform_noise
from .common.numerics import Setting, allocation, column
from .kernels import ops
from .result import fooled
from .search import SearchModel, spec_of

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

SLOT = np.dtype(
    [("owner", object)] + [(k, np.int64) for k in ("row", "place", "restart", "updates", "forward", "backward")]
)
"""What the host keeps of a slot: its image's batch, row and place, and counts."""

SLOT_DATA = ("images", "labels", "target", "domain", "eps", "alpha", "background")
"""Tensors that a slot has of its batch; besides these it has "adv" and, with decay, "momentum"."""


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
    shared
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
    shared: bool
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


class Loop:
    """Attacks images in a fixed number of slots.

    Each slot has an image, its iterate and its own number of updates (equation 4), so images come
    and go at any step. A step is one forward pass over the slots in use, which tells who is fooled,
    one backward pass and one update. Its bookkeeping is on the host, which waits for the verdicts
    and for a look at the gradients.

    Parameters
    ----------
    settings, model
        What to do, and whom to ask.
    slots
        Images that are attacked at once.
    seed
        Of the random starts.
    """

    def __init__(self, settings: LoopSettings, model: SearchModel, slots: int, seed: int) -> None:
        self.settings, self.model, self.classifier = settings, model, model.classifier
        self.slots, self.seed = slots, seed
        self.chunk = slots  # images of a pass; halved when a GPU's memory runs out
        self.queue: deque[Batch] = deque()
        self.slot_data: dict[str, Tensor] = {}  # by slot; of these the first are in use
        self.numbers: dict[str, float] = {}  # those of ε, α and β that are one for all
        self.used = np.zeros(0, dtype=SLOT)
        self.grad: Tensor | None = None  # of the slots in use, until they are updated

    def add(self, batch: Batch) -> None:
        """Let a batch's images wait for slots."""
        if batch.left:
            self.queue.append(batch)

    @property
    def waiting(self) -> int:
        """Images that have no slot yet."""
        return sum(len(batch.waiting) for batch in self.queue)

    @property
    def busy(self) -> bool:
        """Whether images are left."""
        return bool(self.queue or len(self.used))

    def step(self) -> None:
        """Fill free slots and update, evaluate all slots, and retire who is done."""
        self._fill()
        self.model.use(self.slot_data["images"])
        success, grad = self._evaluate_slots()
        last = self.used["updates"] == self.settings.steps
        again = last & ~success & (self.used["restart"] + 1 < self.settings.restarts)
        done = success | last & ~again
        self._retire(done, success)
        self.grad = self._close_gaps(~done & ~again, again, grad)
        if self.settings.random_start:
            self._update(self.grad)
            self._start(np.arange(len(self.grad), len(self.used)))

    # Slots

    def _fill(self) -> None:
        """Give free slots to images that wait; update where the gradient is known."""
        grads = [self.grad] if self.grad is not None and len(self.used) else []
        while self.queue and len(self.used) < self.slots:
            batch = self.queue[0]
            if len(self.used) and not self._fits(batch):
                break
            grads += self._enter(batch, self.slots - len(self.used))
            if not len(batch.waiting):
                self.queue.popleft()
        if grads and not self.settings.random_start:
            self._update(torch.cat(grads) if len(grads) > 1 else grads[0])

    def _fits(self, batch: Batch) -> bool:
        """Whether a batch's images are of the kind that the slots hold."""
        same = spec_of(self.slot_data["images"]) == spec_of(batch.images)
        return same and (batch.target is None) == ("target" not in self.slot_data)

    def _enter(self, batch: Batch, room: int) -> list[Tensor]:
        """Put the next images into slots; returns their gradients where they are known."""
        rows, batch.waiting = batch.waiting[:room], batch.waiting[room:]
        if not len(self.used):
            self._allocate(batch)
        first = len(self.used)
        slots = slice(first, first + len(rows))
        in_order = rows[-1] - rows[0] == len(rows) - 1  # copied at once rather than gathered
        index = slice(rows[0], rows[-1] + 1) if in_order else self._index(rows)
        for name in SLOT_DATA:
            if name in self.slot_data:
                self.slot_data[name][slots] = getattr(batch, name)[index]
        self.slot_data["adv"][slots] = self.slot_data["images"][slots]
        if "momentum" in self.slot_data:
            self.slot_data["momentum"][slots] = 0
        new = np.zeros(len(rows), dtype=SLOT)
        new["owner"], new["row"], new["place"] = batch, rows, batch.places[rows]
        self.used = np.concatenate((self.used, new))
        if batch.grad is None:
            self._start(np.arange(slots.start, slots.stop))
            return []
        grad = batch.grad[index]
        checks.finite_gradient(grad, torch.from_numpy(new["place"].copy()))
        self.used["backward"][slots] += not batch.shared
        return [grad]

    def _allocate(self, batch: Batch) -> None:
        """Make room for images of a new kind; no slot is in use."""
        values = {name: getattr(batch, name) for name in SLOT_DATA}
        self.numbers = {k: v for k, v in values.items() if isinstance(v, float)}
        self.slot_data = {
            k: v[:1].new_empty((self.slots, *v.shape[1:])) for k, v in values.items() if isinstance(v, Tensor)
        }
        if self.model.surrogate_for(batch.images) is not None:  # its gradients have that layout
            self.slot_data["images"] = self.slot_data["images"].to(memory_format=torch.channels_last)
        for name in ("adv", "momentum") if self.settings.decay else ("adv",):
            self.slot_data[name] = torch.empty_like(self.slot_data["images"])

    def _retire(self, done: Flags, success: Flags) -> None:
        """Hand the results of images that are done to their batches."""
        slots = done.nonzero()[0]
        owners = self.used["owner"][slots]
        for batch in {id(owner): owner for owner in owners}.values():
            chosen = slots[[owner is batch for owner in owners]]
            mine, rows = self.used[chosen], self.used["row"][chosen]
            batch.adv[self._index(rows)] = self.slot_data["adv"][self._index(chosen)]
            batch.success[rows] = success[chosen]
            batch.updates[rows] = mine["restart"] * self.settings.steps + mine["updates"]
            batch.forward[rows] += mine["forward"]
            batch.backward[rows] += mine["backward"]
            batch.left -= len(rows)

    def _close_gaps(self, going: Flags, again: Flags, grad: Tensor | None) -> Tensor:
        """Move up those who go on, then those who start again; returns the former's gradients."""
        ready = int(going.sum())
        if ready < len(self.used):
            kept = np.concatenate((going.nonzero()[0], again.nonzero()[0]))
            index = self._index(kept)
            for value in self.slot_data.values():
                value[: len(kept)] = value[index]
            grad = None if grad is None else grad[index[:ready]]
            self.used = self.used[kept]
            self.used["restart"][ready:] += 1
            self.used["updates"][ready:] = 0
        if grad is None:
            return self.slot_data["adv"][:0]
        checks.finite_gradient(grad, torch.from_numpy(self.used["place"][:ready].copy()))
        self.used["backward"][:ready] += 1
        return grad

    # Passes

    def _evaluate_slots(self) -> tuple[Flags, Tensor | None]:
        """One pass over the slots in use: who has succeeded, and the others' gradients."""
        count, at = len(self.used), 0
        success = np.zeros(count, dtype=bool)
        grads: list[Tensor] = []
        while at < count:
            slots = slice(at, min(at + self.chunk, count))
            forward = self.used["forward"][slots].copy()
            try:
                success[slots], grad = self._pass(slots)
            except torch.OutOfMemoryError:
                if slots.stop - at == 1:
                    raise
                self.chunk = (slots.stop - at) // 2
                self.used["forward"][slots] = forward
                continue
            # A part whose images are all done has no gradient; any tensor of its size takes the place.
            grads.append(self.slot_data["adv"][slots] if grad is None else grad)
            at = slots.stop
        return success, torch.cat(grads) if len(grads) > 1 else grads[0]

    def _pass(self, slots: slice) -> tuple[Flags, Tensor | None]:
        """Who of some slots has succeeded, and the gradient; None where all are done."""
        adv, labels = self.slot_data["adv"][slots], self.slot_data["labels"][slots]
        target, used = self._of("target", slots), self.used[slots]
        last = used["updates"] == self.settings.steps
        used["forward"] += 1
        if last.all():
            logits, passes = self.classifier.verdicts(adv)
            used["forward"] += passes.cpu().numpy() - 1
            return _host(fooled(logits, labels, target)), None
        logits, gradient = self.model.evaluate(self.settings.loss, adv, labels, target)
        success = np.zeros(len(adv), dtype=bool)
        if self.settings.early_stop or last.any():
            success = _host(fooled(logits, labels, target)) & (self.settings.early_stop | last)
        decided = success | last
        sure = self.classifier.sure(logits) if decided.any() else None
        if sure is not None:
            self._judge(slots, success, decided & ~_host(sure))
        going = ~(success | last)
        return success, gradient(going) if going.any() else None

    def _judge(self, slots: slice, success: Flags, doubtful: Flags) -> None:
        """Decide as the model does, in its own precision, what is in doubt."""
        chosen = doubtful.nonzero()[0] + slots.start
        if len(chosen):
            adv, labels = self._of("adv", chosen), self._of("labels", chosen)
            assert adv is not None
            assert labels is not None
            logits, passes = self.classifier.verdicts(adv)
            self.used["forward"][chosen] += passes.cpu().numpy()
            success[doubtful] = _host(fooled(logits, labels, self._of("target", chosen)))

    # Updates

    def _update(self, grad: Tensor) -> None:
        """Step with the first slots, whose gradients these are."""
        if not len(grad):
            return
        a, slots = self.settings, slice(len(grad))
        ops.update_(
            self.slot_data["adv"][slots], self.slot_data["images"][slots], grad, self._of("domain", slots),
            eps=self._setting("eps", slots), alpha=self._setting("alpha", slots),
            background=self._background(slots), momentum=self._of("momentum", slots), gain=a.gain,
            decay=a.decay, bounds=a.bounds, sign=-1.0 if "target" in self.slot_data else 1.0,
            normalize=a.normalize, backend=a.backend,
        )  # fmt: skip
        self.used["updates"][slots] += 1

    def _start(self, slots: Ints) -> None:
        """Start from x + U(−1, 1)·E_0, clipped to the bounds."""
        for restart in np.unique(self.used["restart"][slots]).tolist():
            mine = slots[self.used["restart"][slots] == restart]
            images = self.slot_data["images"][self._index(mine)]
            places = torch.from_numpy(self.used["place"][mine])
            uniform = uniform_noise(images, places, self.seed, restart)
            share = allocation(self._background(mine), self._of("domain", mine))
            moved = images + uniform * (column(self._setting("eps", mine)) * share)
            index = self._index(mine)
            self.slot_data["adv"][index] = moved.to(images.dtype).clamp(*self.settings.bounds)
            if "momentum" in self.slot_data:
                self.slot_data["momentum"][index] = 0

    def _of(self, name: str, slots: slice | Ints) -> Tensor | None:
        """What some slots hold."""
        if name not in self.slot_data:
            return None
        return self.slot_data[name][slots if isinstance(slots, slice) else self._index(slots)]

    def _setting(self, name: str, slots: slice | Ints) -> Setting:
        """ε, α or β of some slots."""
        found = self._of(name, slots)
        return self.numbers[name] if found is None else found

    def _background(self, slots: slice | Ints) -> Setting:
        """β_t of equation 4; in double, so that one number for all gives the same as many."""
        base, relax = self._setting("background", slots), self.settings.relax
        if relax is None:
            return base
        images = self.slot_data["images"]
        grown = np.minimum(1.0, self.used["updates"][slots] / (relax * self.settings.steps))
        share = torch.from_numpy(grown).to(images.device)
        base = base.double() if isinstance(base, Tensor) else base
        return (base + (1.0 - base) * share).to(images.dtype)

    def _index(self, slots: Ints) -> Tensor:
        return torch.from_numpy(slots).to(self.slot_data["adv"].device)


def _host(flags: Tensor) -> Flags:
    found: Flags = flags.cpu().numpy()
    return found
