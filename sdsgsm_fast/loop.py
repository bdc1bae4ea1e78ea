"""The loop of METHOD.md, sections 3 and 3b, over slots: an image that is done makes room for the next."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from . import losses, refine
from .common import checks
from .common.host import to_host
from .common.noise import JITTER, random_stream, uniform_noise
from .common.numerics import allocation, column
from .gradients import Iterate, gradient_at
from .kernels import ops
from .kernels.reference import gradient_norm
from .model.memory import is_shortage
from .result import fooled
from .search import Evaluation, Flags, SearchModel
from .slots import Batch, Ints, LoopSettings, Slots

Gradient = Callable[[Flags, Flags], Tensor]
"""``gradient(wanted, wants_margin)``: the loss's gradient, or the margin's where that is wanted."""


class Loop:
    """Attacks images in a fixed number of slots.

    A step is one forward pass over the slots in use, which tells who is fooled, one backward pass
    and one update; an image that is fooled goes on, in its slot, to look for less distortion. The
    bookkeeping is on the host, which waits for the verdicts and for a look at the gradients.

    Parameters
    ----------
    settings, model
        What to do, and whom to ask.
    size
        Images that are attacked at once.
    seed
        Of random starts and of whatever else is drawn.
    """

    def __init__(self, settings: LoopSettings, model: SearchModel, size: int, seed: int) -> None:
        self.settings, self.model, self.classifier = settings, model, model.classifier
        self.slots, self.seed = Slots(settings, size), seed
        self.chunk = size  # images of a pass; halved when a GPU's memory runs out
        self.grad: Tensor | None = None  # of the slots in use, until they are updated
        self.finite = False  # whether that is known to be finite

    def add(self, batch: Batch) -> None:
        """Let a batch's images wait for slots."""
        if batch.left:
            self.slots.queue.append(batch)

    @property
    def busy(self) -> bool:
        """Whether images are left."""
        return bool(self.slots.queue or len(self.slots.used))

    def step(self) -> None:
        """One pass over all slots; who is done makes room.

        The update comes before the pass where the gradient is known from the last one, and after it
        where it must be taken first (`late`).
        """
        self._fill()
        slots, s = self.slots, self.settings
        self.model.use(slots.data["images"])
        grad = self._evaluate_slots()
        finished = slots.used["stage"] > s.probes
        success = finished.copy()
        if s.levels and finished.any():
            success = finished & to_host(slots.data["least_fooled"][: len(finished)].isfinite())
        over = finished | (slots.used["stage"] == 0) & (slots.used["updates"] == s.steps)
        again = over & ~success & (slots.used["restart"] + 1 < s.restarts)
        done = over & ~again
        self._retire(done, success)
        self.grad = slots.close_gaps(~done & ~again, again, grad)
        if len(self.grad) and not self.finite:
            checks.finite_gradient(self.grad, torch.from_numpy(slots.used["place"][: len(self.grad)].copy()))
        if s.late:
            self._update(self.grad)
            if s.random_start:
                self._start(np.arange(len(self.grad), len(slots.used)))

    # Slots

    def _fill(self) -> None:
        """Give free slots to images that wait; update where the gradient is known."""
        grads = [self.grad] if self.grad is not None and len(self.slots.used) else []
        size = self.slots.size
        for entered, grad in self.slots.fill(channels_last=lambda x: self.model.surrogate_for(x) is not None):
            if self.settings.random_start:
                self._start(np.arange(entered.start, entered.stop))
            elif grad is not None:
                grads.append(self._through_extras(entered, grad))
        if self.slots.size < size:
            self.model.limit_slots(self.slots.data["images"], self.slots.size)
        if grads and not self.settings.late:
            self._update(torch.cat(grads) if len(grads) > 1 else grads[0])

    def _retire(self, done: Flags, success: Flags) -> None:
        """Hand over who is done: the iterate, or the best of what was found near the boundary."""
        if done.any():
            chosen = done.nonzero()[0]
            adv = self.slots.get("adv", chosen)
            if self.settings.probes:
                adv, success[chosen] = self._refined(chosen, adv, success[chosen])
            self.slots.retire(done, success, adv)

    def _refined(self, chosen: Ints, adv: Tensor, success: Flags) -> tuple[Tensor, Flags]:
        """What came of refinement, for slots that are done: results and success."""
        slots = self.slots
        refined = slots.on_device(slots.used["stage"][chosen] > 0)
        adv = torch.where(refined[:, None, None, None], slots.get("best", chosen), adv)
        if self.settings.levels is None:
            return adv, success
        nearest = self._grid(chosen, adv).nearest()
        adv = torch.where(slots.on_device(success)[:, None, None, None], slots.get("best_on_grid", chosen), nearest)
        failed = (~success).nonzero()[0]
        for at in range(0, len(failed), self.chunk):  # their nearest points have not been judged yet
            rows = failed[at : at + self.chunk]
            success[rows] = self._judged(chosen[rows], adv[slots.on_device(rows)])[0]
        return adv, success

    def _grid(self, chosen: Ints, adv: Tensor) -> refine.Grid:
        """The grid of levels in the direction of some slots' perturbations."""
        images, levels = self.slots.get("images", chosen), self.settings.levels
        assert levels is not None
        return refine.Grid(images, adv - images, *self.slots.limits(chosen), levels, self.settings.bounds)

    # Passes

    def _evaluate_slots(self) -> Tensor:
        """One pass over the slots in use, which takes them to their next stages; their gradients."""
        slots, used = self.slots, self.slots.used
        count, at = len(used), 0
        grads: list[Tensor] = []
        self.finite = True
        while at < count:
            part = slice(at, min(at + self.chunk, count))
            before = used[part].copy()
            try:
                grads.append(self._pass(part))
            except RuntimeError as error:
                if part.stop - at == 1 or not is_shortage(error):
                    raise
                self.chunk = (part.stop - at) // 2
                self.model.limit_slots(slots.data["images"], self.chunk)
                used[part] = before
                continue
            at = part.stop
        return torch.cat(grads) if len(grads) > 1 else grads[0]

    def _pass(self, part: slice) -> Tensor:
        """See who of some slots is fooled; gradients of those who need one, arbitrary for others."""
        slots, s = self.slots, self.settings
        used, searched = slots.used[part], s.boundary_probes
        searching = used["stage"] == 0
        last = searching & (used["updates"] == s.steps)
        judged = ~searching | last | s.early_stop
        gradient: Gradient
        if s.gradient_moves or (last.all() and not searched):
            success, logits = self._verdicts(part, judged)
            gradient = partial(self._gradient_elsewhere, part)
            self.finite = False
        else:
            success, logits, gradient = self._evaluate(part, judged, last)
        stage = np.where(searching, success, used["stage"] + 1)
        wants_margin = (stage > 0) & (stage <= searched) & refine.needs_gradient(stage, s.refine)
        if s.levels:
            used["grid_fooled"] += success & (used["stage"] > searched)
            wants_margin |= (stage <= s.probes) & refine.by_slope(stage, used["grid_fooled"], s.refine)
        wanted = (searching & ~success & ~last) | wants_margin
        grad = gradient(wanted, wants_margin) if wanted.any() else slots.get("adv", part)
        if s.probes and not wanted.all():  # others go on as well, whose gradient may be anything
            grad = torch.where(slots.on_device(wanted)[:, None, None, None], grad, 0)
        if not s.gradient_moves:
            used["backward"] += wanted
        if s.probes and stage.any():
            self._record_probe(part, stage, success, logits)
        used["stage"] = stage
        return grad

    def _evaluate(self, part: slice, judged: Flags, last: Flags) -> tuple[Flags, Tensor, Gradient]:
        """Success of those who are judged, logits, and what gives gradients by the same pass."""
        slots, s, used = self.slots, self.settings, self.slots.used[part]
        used["forward"] += 1
        labels, target = slots.get("labels", part), slots.of("target", part)
        found = self.model.evaluate(s.loss, slots.get("adv", part), labels, target, self._jitter(part))
        logits = found.logits
        is_fooled, sure = self._read(found, labels, target)
        success = is_fooled & judged
        doubtful = success | last | (used["stage"] > 0)
        chosen = (doubtful & ~sure).nonzero()[0]
        success[chosen] = self._judged(chosen + part.start)[0]

        def gradient(wanted: Flags, wants_margin: Flags) -> Tensor:
            grad = found.gradient(wanted, wants_margin)
            through = self._through_extras(part, grad)
            if not wants_margin.any():
                return through
            return torch.where(slots.on_device(wants_margin)[:, None, None, None], grad, through)

        return success, logits, gradient

    def _read(self, found: Evaluation, labels: Tensor, target: Tensor | None) -> tuple[Flags, Flags]:
        """Who is fooled, and whose logits decide like the model's own: the one wait of a step.

        Whether the gradient is finite comes with them where it is on its way.
        """
        flags = [fooled(found.logits, labels, target)]
        sure, known = self.classifier.sure(found.logits), found.known
        if sure is not None:
            flags.append(sure)
        if known is not None:
            flags.append(checks.is_finite(known).view(1))
        read, count = to_host(torch.cat(flags)), len(labels)
        self.finite &= known is not None and bool(read[-1])
        return read[:count], read[count : 2 * count] if sure is not None else np.ones(count, dtype=bool)

    def _judged(self, chosen: Ints, adv: Tensor | None = None) -> tuple[Flags, Tensor | None]:
        """Who of some slots fools the model in its own precision, and logits; None of nobody.

        Judged are the iterates, or `adv` in their place.
        """
        if not len(chosen):
            return np.zeros(0, dtype=bool), None
        slots = self.slots
        logits, passes = self.classifier.verdicts(slots.get("adv", chosen) if adv is None else adv)
        slots.used["forward"][chosen] += passes.numpy()
        return to_host(fooled(logits, slots.get("labels", chosen), slots.of("target", chosen))), logits

    def _verdicts(self, part: slice, judged: Flags) -> tuple[Flags, Tensor | None]:
        """Success of those who are judged, and their logits, zeros for the others."""
        used = self.slots.used[part]
        # An image that has not moved is not fooled: it would not be here.
        rows = (judged & ((used["updates"] > 0) | self.settings.random_start)).nonzero()[0]
        success = np.zeros(len(used), dtype=bool)
        success[rows], found = self._judged(rows + part.start)
        if found is None:
            return success, None
        logits = found.new_zeros((len(used), found.shape[1]))
        logits[self.slots.on_device(rows)] = found
        return success, logits

    def _gradient_elsewhere(self, part: slice, wanted: Flags, wants_margin: Flags) -> Tensor:
        """Gradients that extras take at points of their own, and the margin's near the boundary."""
        grad = torch.zeros_like(self.slots.get("adv", part))
        for rows, take in ((wanted & ~wants_margin, self._take_by_extras), (wants_margin, self._take_margin)):
            chosen = rows.nonzero()[0]
            if len(chosen):
                grad[self.slots.on_device(chosen)] = take(chosen + part.start)
        return grad

    def _take_by_extras(self, chosen: Ints) -> Tensor:
        """The loss's gradient of some slots as the extras take it, its passes counted."""
        slots, s, adv = self.slots, self.settings, self.slots.get("adv", chosen)
        jitter = self._jitter(chosen)
        if jitter is not None:  # x_t does not move with the points at which the gradient is taken
            distance = jitter.distance(adv)
            jitter = losses.Jitter(jitter.normal, lambda _: distance)

        def take(x: Tensor) -> Tensor:
            slots.used["forward"][chosen] += 1
            slots.used["backward"][chosen] += 1
            return self._gradient(s.loss, x, chosen, jitter)

        return gradient_at(s.gradient, take, adv, self._iterate(chosen))

    def _take_margin(self, chosen: Ints) -> Tensor:
        self.slots.used["forward"][chosen] += 1
        self.slots.used["backward"][chosen] += 1
        return self._gradient("margin", self.slots.get("adv", chosen), chosen, None)

    def _gradient(self, loss: str, x: Tensor, chosen: Ints, jitter: losses.Jitter | None) -> Tensor:
        labels, target = self.slots.get("labels", chosen), self.slots.of("target", chosen)
        return self.model.evaluate(loss, x, labels, target, jitter).gradient(np.ones(len(chosen), dtype=bool), None)

    def _through_extras(self, part: slice, grad: Tensor) -> Tensor:
        """What extras that move nothing make of a gradient at the iterates."""
        if not self.settings.gradient:
            return grad
        chosen = np.arange(part.start, part.stop)
        return gradient_at(self.settings.gradient, lambda _: grad, self.slots.get("adv", part), self._iterate(chosen))

    def _iterate(self, chosen: Ints) -> Iterate:
        """What extras may know of some slots."""
        slots, s, used = self.slots, self.settings, self.slots.used[chosen]
        velocity = slots.of("momentum", chosen)
        if s.moments and s.decay:
            mean, spread = slots.get("mean", chosen), slots.get("spread", chosen)
            updates = slots.on_device(used["updates"])
            velocity = s.moments.direction(mean, spread, updates.clamp(min=1))
        ahead = None
        if velocity is not None:
            share = allocation(slots.background(chosen), slots.of("domain", chosen))
            ahead = velocity * (self._sign * s.decay * column(slots.alpha(chosen)) * share)
        return Iterate(ahead, used["place"], used["restart"], used["updates"], self.seed)

    def _jitter(self, chosen: slice | Ints) -> losses.Jitter | None:
        """Noise and distances of the jitter loss (equation 12)."""
        if self.settings.loss != "jitter":
            return None
        images, used = self.slots.get("images", chosen), self.slots.used[chosen]

        def normal(classes: int) -> Tensor:
            keys = zip(used["place"].tolist(), used["restart"].tolist(), used["updates"].tolist(), strict=True)
            drawn = [random_stream(self.seed, *key, kind=JITTER).standard_normal(classes) for key in keys]
            return torch.from_numpy(np.stack(drawn))

        return losses.Jitter(normal, lambda leaf: (leaf - images).flatten(1).abs().amax(1))

    # Updates

    @property
    def _sign(self) -> float:
        return -1.0 if "target" in self.slots.data else 1.0

    def _update(self, grad: Tensor) -> None:
        """Step with the first slots, whose gradients these are; those near the boundary move along it."""
        if not len(grad):
            return
        s, slots, part = self.settings, self.slots, slice(len(grad))
        searching = slots.used["stage"][part] == 0
        active = None if searching.all() else slots.on_device(searching)
        normalize, momentum = s.normalize, slots.of("momentum", part)
        if searching.any():
            if s.moments:
                grad, normalize = self._moments(grad), "none"
            ops.update_(
                slots.get("adv", part), slots.get("images", part), grad, slots.of("domain", part),
                eps=slots.setting("eps", part), alpha=slots.alpha(part), background=slots.background(part),
                active=active, momentum=momentum, gain=s.gain, decay=0.0 if s.moments else s.decay,
                bounds=s.bounds, sign=self._sign, normalize=normalize, backend=s.backend,
            )  # fmt: skip
        if active is not None:
            self._probe((~searching).nonzero()[0], grad)
        slots.used["updates"][part] += searching

    def _moments(self, grad: Tensor) -> Tensor:
        """The direction v of equation 13 of the first slots, after taking their gradients in."""
        part, moments = slice(len(grad)), self.settings.moments
        assert moments is not None
        mean, spread = self.slots.get("mean", part), self.slots.get("spread", part)
        moments.add_(mean, spread, grad / gradient_norm(grad, self.settings.normalize))
        return moments.direction(mean, spread, self.slots.on_device(self.slots.used["updates"][part] + 1))

    def _start(self, slots: Ints) -> None:
        """Start from x + U(−1, 1)·E_0, clipped to the bounds."""
        for restart in np.unique(self.slots.used["restart"][slots]).tolist():
            mine = slots[self.slots.used["restart"][slots] == restart]
            images = self.slots.get("images", mine)
            places = torch.from_numpy(self.slots.used["place"][mine])
            uniform = uniform_noise(images, places, self.seed, restart)
            share = allocation(self.slots.background(mine), self.slots.of("domain", mine))
            moved = images + uniform * (column(self.slots.setting("eps", mine)) * share)
            index = self.slots.on_device(mine)
            self.slots.data["adv"][index] = moved.to(images.dtype).clamp(*self.settings.bounds)
            self.slots.forget(index)

    # Near the boundary

    def _record_probe(self, part: slice, stage: Ints, success: Flags, logits: Tensor | None) -> None:
        """Keep what a pass says of images that are fooled, or were before: the best and the gap."""
        slots, searched = self.slots, self.settings.boundary_probes
        chosen = (stage > 0).nonzero()[0]
        rows, before = slots.on_device(chosen), slots.used["stage"][part][chosen]
        assert logits is not None
        labels, target = slots.get("labels", part)[rows], slots.of("target", part)
        margins = losses.loss("margin", logits[rows], labels, None if target is None else target[rows])
        slots.data["gap"][part][rows] = (-self._sign * margins).double()
        adv = slots.get("adv", part)[rows]
        l2 = (adv - slots.get("images", part)[rows]).double().flatten(1).norm(dim=1)
        first = slots.on_device(before == 0)
        better = first | (slots.on_device(success[chosen] & (before <= searched)) & (l2 < slots.data["l2"][part][rows]))
        slots.replace("l2", part, rows, better, l2)
        slots.replace("best", part, rows, better, adv)
        slots.replace("largest_failed", part, rows, first, torch.zeros_like(l2))
        slots.replace("least_fooled", part, rows, first, torch.full_like(l2, torch.inf))
        on_grid = before > searched
        if on_grid.any():
            self._record_effect(part, chosen[on_grid], success[chosen][on_grid], stage)

    def _record_effect(self, part: slice, chosen: Ints, won: Flags, stage: Ints) -> None:
        """Narrow the range of effects on the grid, and stop where it is narrow enough."""
        slots, rows, flags = self.slots, self.slots.on_device(chosen), self.slots.on_device(won)
        adv, images, best = (slots.get(name, part)[rows] for name in ("adv", "images", "best"))
        tried = refine.effect_of(adv - images, best - images)
        fails, fools = slots.data["largest_failed"][part], slots.data["least_fooled"][part]
        number = slots.used["stage"][part][chosen] - self.settings.boundary_probes
        wanted = refine.next_effect(fails[rows], fools[rows])
        number_won = slots.used["grid_fooled"][part][chosen] - won
        of_slope = refine.by_slope(slots.used["stage"][part][chosen], number_won, self.settings.refine)
        # Where less than what was wanted came, the pixels may take no more.
        exhausted = ~flags & ~slots.on_device(of_slope) & (tried < wanted * (1 - 1e-9))
        before = (slots.data["best_on_grid"][part][rows] - images).double().flatten(1).norm(dim=1)
        l2 = (adv - images).double().flatten(1).norm(dim=1)
        better = flags & (fools[rows].isinf() | (l2 < before))
        slots.replace("best_on_grid", part, rows, better, adv)
        fails[rows] = torch.where(flags, fails[rows], tried.maximum(fails[rows]))
        fools[rows] = torch.where(flags, tried.minimum(fools[rows]), fools[rows])
        enough = np.where(number >= refine.GRID_ENOUGH, torch.inf, refine.GRID_CLOSE)
        close = fools[rows].isfinite() & (fools[rows] <= fails[rows].clamp(min=1e-9) * slots.on_device(enough))
        stage[chosen[to_host(close | exhausted)]] = self.settings.probes + 1

    def _probe(self, chosen: Ints, grad: Tensor) -> None:
        """Move images that are fooled to the next point to look at."""
        slots, count = self.slots, self.settings.boundary_probes
        stage = slots.used["stage"][chosen]
        slope = refine.by_slope(stage, slots.used["grid_fooled"][chosen], self.settings.refine)
        for mine, move in (
            (chosen[stage <= count], partial(self._along_boundary, grad)),
            (chosen[(stage > count) & ~slope], self._on_grid),
            (chosen[slope], partial(self._on_grid_by_slope, grad)),
        ):
            if len(mine):
                slots.data["adv"][slots.on_device(mine)] = move(mine)

    def _along_boundary(self, grad: Tensor, chosen: Ints) -> Tensor:
        """Equation 15 and what takes its place."""
        slots, passes, index = self.slots, self.settings.refine, self.slots.on_device(chosen)
        images, adv = slots.get("images", chosen), slots.get("adv", chosen)
        stage = slots.used["stage"][chosen]
        halved = slots.on_device(~refine.needs_gradient(stage, passes))
        share = refine.damping(slots.on_device(stage), self.settings.boundary_probes)
        slope = -self._sign * grad[index]
        moved = refine.next_probe(images, adv, slope, slots.get("gap", chosen), *slots.limits(chosen), share)
        return torch.where(halved[:, None, None, None], (images + adv) / 2, moved)

    def _on_grid(self, chosen: Ints) -> Tensor:
        """Equation 16."""
        slots = self.slots
        effect = refine.next_effect(slots.get("largest_failed", chosen), slots.get("least_fooled", chosen))
        return self._grid(chosen, slots.get("best", chosen)).with_effect(effect)

    def _on_grid_by_slope(self, grad: Tensor, chosen: Ints) -> Tensor:
        """The few pixels of the last point that the slope says to change."""
        slots, adv = self.slots, self.slots.get("adv", chosen)
        slope = -self._sign * grad[slots.on_device(chosen)]
        return self._grid(chosen, slots.get("best", chosen)).towards(adv, slope, slots.get("gap", chosen))
