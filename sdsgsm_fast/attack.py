"""The attack loop: METHOD.md, sections 2 to 4. It knows no backend; domains are domains.py's."""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass, replace
from typing import TypedDict

import torch
from torch import Tensor

from . import checks, losses, ops
from .backends import check_name
from .classifier import Classifier, Model
from .domains import Clean, DomainFunction, Gradient, Measured, Occlusion
from .noise import uniform_noise
from .progress import Progress, reporter
from .result import AttackResult, Passes

Domain = Occlusion | Gradient | Tensor | DomainFunction | None


class Settings(TypedDict, total=False):
    """The keyword arguments of `Attack`, for presets that fix some of them."""

    eps: float | Tensor
    alpha: float | Tensor | None
    steps: int
    domain: Domain
    background: float | Tensor
    relax: float | None
    gain: float
    decay: float
    normalize: str
    loss: str
    random_start: bool
    restarts: int
    early_stop: bool
    bounds: tuple[float, float]
    mean: checks.PerChannel | None
    std: checks.PerChannel | None
    precision: str
    backend: str
    max_memory: int | None
    seed: int | None
    progress: bool | Progress


@dataclass
class _Alive:
    """The images that are still attacked: `rows` are their places in the batch."""

    rows: Tensor
    images: Tensor
    adv: Tensor
    labels: Tensor
    target: Tensor | None
    domain: Tensor | None
    eps: float | Tensor
    alpha: float | Tensor
    background: float | Tensor
    momentum: Tensor | None = None

    def keep(self, mask: Tensor) -> _Alive:
        """Return the images where `mask` (n,) is true."""
        chosen = {
            name: value[mask] for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **chosen)


@dataclass
class _Tally:
    """What the loop has found out about every image of the batch."""

    adv: Tensor
    success: Tensor
    updates: Tensor
    forward: Tensor
    backward: Tensor

    def finish(self, alive: _Alive, fooled: Tensor) -> None:
        """Record the present iterate of every image and whether it fools the model."""
        self.adv[alive.rows] = alive.adv
        self.success[alive.rows] = fooled


class Attack:
    """The attack loop with every setting of METHOD.md; `SDSGSM` and the presets are its settings.

    Parameters
    ----------
    model
        A differentiable classifier, `nn.Module` or callable: normalised images (B, C, H, W) to
        logits (B, K ≥ 2), or to an object with `.logits`. It is used in eval mode and left as it
        was: flags, gradients, buffers and the global random state.
    eps
        ε, the largest change of a pixel inside the domain, in units of the images; a number, or
        (B,).
    alpha
        α, the step inside the domain; a number, or (B,); None for ε/8.
    steps
        T, the largest number of updates.
    domain
        `Occlusion(…)`, `Gradient(…)`, None for m ≡ 1, a tensor (B, H, W) in [0, 1], or a callable
        ``domain(classifier, images, labels)`` that returns one.
    background
        β in [0, 1], the share of ε and α outside the domain; a number, or (B,).
    relax
        r in (0, 1], the share of the steps after which β has grown to 1 (equation 4); None keeps it
        fixed, which is the paper's allocation.
    gain
        κ > 0, the slope of the tanh; ``math.inf`` steps with the sign.
    decay
        μ ≥ 0, the momentum of equation 6.
    normalize
        N of equation 5: "mean_abs", "max_abs", "rms" or "none".
    loss
        "ce", "margin" or "dlr"; see `losses.loss`.
    random_start
        Start from x + U(−1, 1)·E_0, drawn from `seed` for each image's index.
    restarts
        Attempts with fresh random starts on the images that are not fooled yet.
    early_stop
        Freeze an image as soon as it fools the model.
    bounds
        (lo, hi) of the pixel values.
    mean, std
        The model's normalisation, applied inside; one value, or one a channel; None for none.
    precision
        "float32": the model's own precision. "bfloat16": search under bfloat16 autocast, success
        judged in the model's own precision. "auto" is "float32" in this version.
    backend
        "auto", "reference" or "native".
    max_memory
        Bytes of scratch space that occlusion stays within, approximately; None for no limit but
        the device's.
    seed
        Seed of the random starts; None draws one from the operating system for each run.
    progress
        True for a line on the terminal, or a callback ``progress(stage, done, total)``.

    Raises
    ------
    ValueError, TypeError
        If a setting is out of range. Calls raise them for images, labels and target.

    Notes
    -----
    An image's result does not depend on the other images of its batch, up to the model's own float
    rounding of different batch sizes.
    """

    def __init__(
        self,
        model: Model,
        *,
        eps: float | Tensor = 8 / 255,
        alpha: float | Tensor | None = None,
        steps: int = 20,
        domain: Domain = Occlusion(),  # noqa: B008 (frozen)
        background: float | Tensor = 0.5,
        relax: float | None = 0.6,
        gain: float = 1.0,
        decay: float = 0.0,
        normalize: str = "mean_abs",
        loss: str = "ce",
        random_start: bool = False,
        restarts: int = 1,
        early_stop: bool = True,
        bounds: tuple[float, float] = (0.0, 1.0),
        mean: checks.PerChannel | None = None,
        std: checks.PerChannel | None = None,
        precision: str = "auto",
        backend: str = "auto",
        max_memory: int | None = None,
        seed: int | None = None,
        progress: bool | Progress = False,
    ) -> None:
        self.classifier = Classifier(model, mean=mean, std=std, precision=precision)
        self.eps = _setting("eps", eps)
        self.alpha = _setting("alpha", self.eps / 8 if alpha is None else alpha)
        self.steps = steps
        self.domain = domain
        self.background = _setting("background", background)
        self.relax = relax
        self.gain = gain
        self.decay = decay
        self.normalize = normalize
        self.loss = loss
        self.random_start = random_start
        self.restarts = restarts
        self.early_stop = early_stop
        self.bounds = checks.pixel_bounds(bounds)
        self.backend = backend
        self.max_memory = max_memory
        self.seed = seed
        self.progress = reporter(progress)
        self._check_settings()

    def __call__(self, images: Tensor, labels: Tensor, *, target: Tensor | None = None) -> Tensor:
        """Adversarial images (B, C, H, W); see `run`."""
        return self.run(images, labels, target=target).adv

    def run(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        target: Tensor | None = None,
        index: Tensor | None = None,
    ) -> AttackResult:
        """Attack a batch.

        Parameters
        ----------
        images
            (B, C, H, W) floating in `bounds`, on the model's device; before normalisation.
        labels
            (B,) integer, the true classes.
        target
            (B,) integer, the classes to reach, other than `labels`; None for an untargeted attack.
        index
            (B,) integer at least 0, the images' places in their data set, from which the random
            starts are drawn; None for 0 … B−1.

        Returns
        -------
        AttackResult

        Raises
        ------
        ValueError, TypeError
            If an argument has a wrong shape, dtype, device or value, the model's output does not
            depend on the images, or a gradient is not finite.
        """
        self._check_batch(images, labels, target, index)
        # An inference tensor cannot take part in a graph; a copy of it can.
        with torch.inference_mode(False):
            images = images.clone() if images.is_inference() else images.detach()
            labels = labels.to(torch.int64, copy=labels.is_inference())
            if target is not None:
                target = target.to(torch.int64, copy=target.is_inference())
            if not len(images):
                return self._empty(images)
            with self.classifier.frozen():
                return self._attack(images, labels, target, index)

    def _attack(
        self, images: Tensor, labels: Tensor, target: Tensor | None, index: Tensor | None
    ) -> AttackResult:
        device, batch = images.device, len(images)
        spent = self.classifier.forwards, self.classifier.backwards
        clean = self._evaluate_clean(images, labels, target)
        measured = self._measure(clean)
        tally = _Tally(
            adv=images.clone(),
            success=torch.zeros(batch, dtype=torch.bool, device=device),
            updates=torch.zeros(batch, dtype=torch.int64, device=device),
            forward=torch.full((batch,), (self.classifier.forwards - spent[0]) // batch),
            backward=torch.full((batch,), (self.classifier.backwards - spent[1]) // batch),
        )
        skipped = clean.predicted != labels
        seed = secrets.randbits(63) if self.seed is None else self.seed
        for restart in range(self.restarts):
            todo = ~skipped & ~tally.success & (torch.as_tensor(self.eps, device=device) > 0)
            if not bool(todo.any()):
                break
            everything = _Alive(
                torch.arange(batch, device=device), images, images, labels, target,
                None if self.domain is None else measured.domain,
                self.eps, self.alpha, self.background,
            )  # fmt: skip
            alive = everything.keep(todo)
            alive.adv = alive.images.clone()
            if self.random_start:
                places = torch.arange(batch) if index is None else index.cpu()
                self._perturb(alive, places[alive.rows.cpu()], seed, restart)
            first = None if self.random_start or clean.grad is None else clean.grad[todo]
            self._descend(alive, first, tally)
        return AttackResult(
            adv=tally.adv, success=tally.success, skipped=skipped, updates=tally.updates,
            domain=measured.domain, scores=measured.scores,
            passes=Passes(tally.forward, tally.backward), images=images, bounds=self.bounds,
            fools=lambda adv: self._judge(adv, labels, target),
        )  # fmt: skip

    def _descend(self, alive: _Alive, grad: Tensor | None, tally: _Tally) -> None:
        """Take up to T steps with the images of `alive`; `grad` is that of the first, if known."""
        for step in range(self.steps):
            if grad is None:
                alive, grad = self._evaluate(alive, tally)
            if grad is None:
                break
            alive.adv, alive.momentum = ops.update_(
                alive.adv, alive.images, grad, alive.domain,
                eps=alive.eps, alpha=alive.alpha, background=self._background(alive, step),
                momentum=alive.momentum, gain=self.gain, decay=self.decay, bounds=self.bounds,
                sign=1.0 if alive.target is None else -1.0, normalize=self.normalize,
                backend=self.backend,
            )  # fmt: skip
            tally.updates[alive.rows] += 1
            grad = None
            if self.progress:
                self.progress("attack", step + 1, self.steps)
        if len(alive.rows):
            logits = self.classifier.logits(alive.adv)
            tally.forward[alive.rows.cpu()] += 1
            tally.finish(alive, _fooled(logits, alive.labels, alive.target))
        elif self.progress:
            self.progress("attack", self.steps, self.steps)

    def _evaluate(self, alive: _Alive, tally: _Tally) -> tuple[_Alive, Tensor | None]:
        """One forward pass tells who is fooled, and its backward pass the others' gradient.

        With early stop the fooled images leave; the gradient is None if nobody stays.
        """
        logits, leaf = self.classifier.trace(alive.adv, search=True)
        tally.forward[alive.rows.cpu()] += 1
        stay = torch.ones_like(alive.rows, dtype=torch.bool)
        if self.early_stop:
            stay = ~self._confirmed(alive, logits, tally)
            if not bool(stay.all()):
                done = alive.keep(~stay)
                tally.finish(done, torch.ones_like(done.rows, dtype=torch.bool))
            if not bool(stay.any()):
                return alive.keep(stay), None
        loss = losses.loss(self.loss, logits, alive.labels, alive.target)
        grad = self.classifier.gradient(loss, leaf)
        tally.backward[alive.rows.cpu()] += 1
        return (alive, grad) if bool(stay.all()) else (alive.keep(stay), grad[stay])

    def _confirmed(self, alive: _Alive, logits: Tensor, tally: _Tally) -> Tensor:
        """Who is fooled, (n,) bool; a reduced precision's yes is asked again at full precision."""
        fooled = _fooled(logits, alive.labels, alive.target)
        if self.classifier.reduced and bool(fooled.any()):
            doubtful = alive.keep(fooled)
            verdict = self.classifier.logits(doubtful.adv)
            tally.forward[doubtful.rows.cpu()] += 1
            fooled[fooled.clone()] = _fooled(verdict, doubtful.labels, doubtful.target)
        return fooled

    def _evaluate_clean(self, images: Tensor, labels: Tensor, target: Tensor | None) -> Clean:
        """One pass over the clean images serves the skipping, the domain and the first step."""
        needs_grad = isinstance(self.domain, Gradient) or not self.random_start
        traced = self.classifier.trace(images, search=True) if needs_grad else None
        if traced is None or self.classifier.reduced:  # verdicts are the full precision's
            logits = self.classifier.logits(images)
        else:
            logits = traced[0].detach()
        checks.classes_in_range("labels", labels, logits.shape[1])
        if target is not None:
            checks.classes_in_range("target", target, logits.shape[1])
        grad = None
        if traced is not None:
            loss = losses.loss(self.loss, traced[0], labels, target)
            grad = self.classifier.gradient(loss, traced[1])
        return Clean(self.classifier, images, labels, target, logits, logits.argmax(1), grad)

    def _measure(self, clean: Clean) -> Measured:
        """The domain m (B, H, W) from whatever the user gave."""
        images = clean.images
        if isinstance(self.domain, Occlusion):
            return self.domain.measure(
                clean, backend=self.backend, max_memory=self.max_memory, progress=self.progress
            )
        if isinstance(self.domain, Gradient) and clean.grad is not None:
            return Measured(self.domain.of(clean.grad))
        if self.domain is None:
            ones = images.new_ones((1, *images.shape[2:]))
            return Measured(ones.expand(len(images), -1, -1))
        if isinstance(self.domain, Tensor):
            return Measured(self.domain)
        domain = self.domain(self.classifier, images, clean.labels)
        checks.domain_tensor(domain, images)
        return Measured(domain)

    def _background(self, alive: _Alive, step: int) -> float | Tensor:
        """β_t of equation 4."""
        if self.relax is None:
            return alive.background
        return alive.background + (1 - alive.background) * min(1, step / (self.relax * self.steps))

    def _perturb(self, alive: _Alive, places: Tensor, seed: int, restart: int) -> None:
        """Start from x + U(−1, 1)·E_0, clipped to the bounds."""
        uniform = uniform_noise(alive.images, places, seed, restart)
        background = _column(self._background(alive, 0))
        mask: float | Tensor = 1.0 if alive.domain is None else alive.domain[:, None]
        budget = _column(alive.eps) * (background + (1 - background) * mask)
        alive.adv = (alive.images + uniform * budget).to(alive.images.dtype).clamp(*self.bounds)

    def _judge(self, adv: Tensor, labels: Tensor, target: Tensor | None) -> Tensor:
        """Whether the model, in its own precision, is fooled by each of `adv`, (B,) bool."""
        if not len(adv):
            return torch.zeros_like(labels, dtype=torch.bool)
        with self.classifier.frozen():
            return _fooled(self.classifier.logits(adv), labels, target)

    def _empty(self, images: Tensor) -> AttackResult:
        """Result of an attack on no images."""
        flags = torch.zeros(0, dtype=torch.bool, device=images.device)
        counts = torch.zeros(0, dtype=torch.int64)
        return AttackResult(
            adv=images, success=flags, skipped=flags, updates=counts.to(images.device),
            domain=images.new_empty((0, *images.shape[2:])), scores=None,
            passes=Passes(counts, counts), images=images, bounds=self.bounds,
            fools=lambda adv: torch.zeros(len(adv), dtype=torch.bool, device=adv.device),
        )  # fmt: skip

    def _check_settings(self) -> None:
        checks.integer("steps", self.steps, 1)
        checks.integer("restarts", self.restarts, 1)
        if self.restarts > 1 and not self.random_start:
            raise ValueError("restarts: a second attempt needs random_start=True to differ")
        checks.number("gain", self.gain, "a number above 0, or math.inf", lambda v: v > 0)
        checks.number("decay", self.decay, "a finite number ≥ 0", lambda v: 0 <= v < math.inf)
        if self.relax is not None:
            checks.number("relax", self.relax, "a number in (0, 1], or None", lambda v: 0 < v <= 1)
        checks.choice("normalize", self.normalize, ops.NORMALIZE)
        checks.choice("loss", self.loss, losses.LOSSES)
        check_name(self.backend)
        if self.max_memory is not None:
            checks.integer("max_memory", self.max_memory, 1)
        if self.seed is not None:
            checks.integer("seed", self.seed, 0)
        if bool((torch.as_tensor(self.background) > 1).any()):
            raise ValueError(f"background: expected values in [0, 1], found {self.background}")
        known = self.domain is None or isinstance(self.domain, Tensor) or callable(self.domain)
        if not known:
            raise TypeError(
                "domain: expected Occlusion, Gradient, None, a tensor or a callable, "
                f"found {type(self.domain).__name__}"
            )

    def _check_batch(
        self, images: Tensor, labels: Tensor, target: Tensor | None, index: Tensor | None
    ) -> None:
        checks.image_batch("images", images)
        checks.values_in_bounds(images, self.bounds)
        checks.class_indices("labels", labels, images)
        if target is not None:
            checks.class_indices("target", target, images)
            if bool((target == labels).any()):
                raise ValueError(
                    "target: expected classes other than labels, "
                    f"found the same for {checks.named(target == labels)}"
                )
        for name in ("eps", "alpha", "background"):
            value = getattr(self, name)
            if isinstance(value, Tensor):
                checks.per_image(name, value, len(images))
                checks.same_device(name, value, images)
        if index is not None:
            checks.same_shape("index", index, (len(images),))
        if isinstance(self.domain, Tensor):
            checks.domain_tensor(self.domain, images)


def _fooled(logits: Tensor, labels: Tensor, target: Tensor | None) -> Tensor:
    """Whether the predicted class is wrong, or is the target, (B,) bool."""
    predicted = logits.argmax(1)
    return predicted != labels if target is None else predicted == target


def _setting(name: str, value: float | Tensor) -> float | Tensor:
    """Check a number or tensor (B,); a tensor without dimensions becomes the number it holds."""
    if isinstance(value, Tensor) and not value.ndim:
        value = value.item()
    checks.per_image(name, value, len(value) if isinstance(value, Tensor) else 0)
    return value


def _column(value: float | Tensor) -> float | Tensor:
    """Shape a (B,) tensor so that it broadcasts over (B, C, H, W)."""
    return value[:, None, None, None] if isinstance(value, Tensor) else value
