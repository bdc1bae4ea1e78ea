"""The attack loop: METHOD.md, sections 2 to 4. It knows no backend; domains are domains.py's."""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass, replace
from typing import TypedDict

import torch
from torch import Tensor

from . import checks, losses, ops
from .classifier import Classifier, Model
from .domains import Clean, Domain, Gradient, Occlusion, measure
from .noise import uniform_noise
from .numerics import Setting, allocation, column, compute_dtype
from .progress import Progress, reporter
from .result import AttackResult, Judge, Passes, fooled


class Settings(TypedDict, total=False):
    """The keyword arguments of `Attack`, for presets that fix some of them."""

    eps: Setting
    alpha: Setting | None
    steps: int
    domain: Domain
    background: Setting
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
    eps: Setting
    alpha: Setting
    background: Setting
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

    @classmethod
    def of(cls, images: Tensor) -> _Tally:
        """Nothing has been found out yet."""
        none = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        return cls(images.clone(), none.bool(), none.clone(), none.clone(), none.clone())

    def finish(self, alive: _Alive, verdict: Tensor) -> None:
        """Record the present iterate of every image and whether it fools the model."""
        self.adv[alive.rows] = alive.adv
        self.success[alive.rows] = verdict


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
        judged in the model's own precision. "auto" is "float32" but for an `Occlusion` domain,
        which it searches in bfloat16 where the device gains from that.
    backend
        "auto", "reference", "native" or "triton".
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
        eps: Setting = 8 / 255,
        alpha: Setting | None = None,
        steps: int = 20,
        domain: Domain = Occlusion(),  # noqa: B008 (frozen)
        background: Setting = 0.5,
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
        with torch.inference_mode(False), torch.no_grad():
            given = images.clone() if images.is_inference() else images.detach()
            exact = given.to(compute_dtype(given)).as_subclass(Tensor)
            labels = labels.clone().long().as_subclass(Tensor)
            target = None if target is None else target.clone().long().as_subclass(Tensor)
            judge = Judge(self.classifier, labels, target)
            if not len(images):
                return self._empty(given, judge)
            with self.classifier.frozen():
                result = self._attack(exact, labels, target, index, judge)
            return result if given.dtype == exact.dtype else _narrowed(result, given)

    def _attack(
        self,
        images: Tensor,
        labels: Tensor,
        target: Tensor | None,
        index: Tensor | None,
        judge: Judge,
    ) -> AttackResult:
        """Attack images of the compute dtype."""
        rows = torch.arange(len(images), device=images.device)
        before = self.classifier.forwards
        clean = self._evaluate_clean(images, labels, target)
        measured = measure(
            self.domain, clean,
            backend=self.backend, max_memory=self.max_memory, progress=self.progress,
        )  # fmt: skip
        tally = _Tally.of(images)
        again = 0 if measured.rescored is None else measured.rescored
        common = self.classifier.forwards - before - int(torch.as_tensor(again).sum())
        tally.forward += math.ceil(common / len(images)) + again
        by_gradient = isinstance(self.domain, Gradient)
        tally.backward += int(by_gradient)
        skipped = clean.predicted != labels
        everything = _Alive(
            rows, images, images, labels, target, None if self.domain is None else measured.domain,
            _on(images, self.eps), _on(images, self.alpha), _on(images, self.background),
        )  # fmt: skip
        seed = secrets.randbits(63) if self.seed is None else self.seed
        for restart in range(self.restarts):
            todo = ~skipped & ~tally.success & (torch.as_tensor(everything.eps) > 0).to(rows.device)
            if not bool(todo.any()):
                break
            alive = everything.keep(todo)
            alive.adv = alive.images.clone()
            grad = None
            if self.random_start:
                places = rows if index is None else index.to(rows)
                self._perturb(alive, places[alive.rows], seed, restart)
            elif clean.grad is not None:
                grad = clean.grad[todo]
                checks.finite_gradient(grad, alive.rows)
                tally.backward[alive.rows] += int(not by_gradient)
            self._descend(alive, grad, tally)
        return AttackResult(
            adv=tally.adv, success=tally.success, skipped=skipped, updates=tally.updates,
            domain=measured.domain, scores=measured.scores, rescored=measured.rescored,
            passes=Passes(tally.forward, tally.backward), images=images, bounds=self.bounds,
            judge=judge,
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
            tally.forward[alive.rows] += 1
            tally.finish(alive, fooled(logits, alive.labels, alive.target))
        elif self.progress:
            self.progress("attack", self.steps, self.steps)

    def _evaluate(self, alive: _Alive, tally: _Tally) -> tuple[_Alive, Tensor | None]:
        """One forward pass tells who is fooled, and its backward pass the others' gradient.

        With early stop the fooled images leave; the gradient is None if nobody stays.
        """
        logits, leaf = self.classifier.trace(alive.adv, search=True)
        tally.forward[alive.rows] += 1
        with torch.enable_grad():
            loss = losses.loss(self.loss, logits, alive.labels, alive.target)
        done = torch.zeros_like(alive.labels, dtype=torch.bool)
        if self.early_stop:
            done = self._confirmed(alive, logits, tally)
        if some := bool(done.any()):
            finished, alive = alive.keep(done), alive.keep(~done)
            tally.finish(finished, torch.ones_like(finished.rows, dtype=torch.bool))
        if not len(alive.rows):
            return alive, None
        grad = self.classifier.gradient(loss, leaf)
        grad = grad[~done] if some else grad
        checks.finite_gradient(grad, alive.rows)
        tally.backward[alive.rows] += 1
        return alive, grad

    def _confirmed(self, alive: _Alive, logits: Tensor, tally: _Tally) -> Tensor:
        """Who is fooled, (n,) bool; a reduced precision's yes is asked again at full precision."""
        done = fooled(logits, alive.labels, alive.target)
        if self.classifier.reduced and bool(done.any()):
            doubtful = alive.keep(done)
            verdict = self.classifier.logits(doubtful.adv)
            tally.forward[doubtful.rows] += 1
            done[done.clone()] = fooled(verdict, doubtful.labels, doubtful.target)
        return done

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
            with torch.enable_grad():
                loss = losses.loss(self.loss, traced[0], labels, target)
            grad = self.classifier.gradient(loss, traced[1])
        return Clean(self.classifier, images, labels, target, logits, grad)

    def _background(self, alive: _Alive, step: int) -> Setting:
        """β_t of equation 4."""
        if self.relax is None:
            return alive.background
        return alive.background + (1 - alive.background) * min(1, step / (self.relax * self.steps))

    def _perturb(self, alive: _Alive, places: Tensor, seed: int, restart: int) -> None:
        """Start from x + U(−1, 1)·E_0, clipped to the bounds."""
        uniform = uniform_noise(alive.images, places, seed, restart)
        budget = column(alive.eps) * allocation(self._background(alive, 0), alive.domain)
        alive.adv = (alive.images + uniform * budget).to(alive.images.dtype).clamp(*self.bounds)

    def _empty(self, images: Tensor, judge: Judge) -> AttackResult:
        """Result of an attack on no images."""
        tally = _Tally.of(images)
        return AttackResult(
            adv=tally.adv, success=tally.success, skipped=tally.success, updates=tally.updates,
            domain=images.new_empty((0, *images.shape[2:])), scores=None, rescored=None,
            passes=Passes(tally.forward, tally.backward), images=images, bounds=self.bounds,
            judge=judge,
        )  # fmt: skip

    def _check_settings(self) -> None:
        checks.integer("steps", self.steps, 1)
        checks.integer("restarts", self.restarts, 1)
        if self.restarts > 1 and not self.random_start:
            raise ValueError("restarts: a second attempt needs random_start=True to differ")
        checks.number("gain", self.gain, "a number above 0, or math.inf", lambda v: v > 0)
        checks.number("decay", self.decay, "a finite number of at least 0", checks.is_size)
        if self.relax is not None:
            checks.number("relax", self.relax, "a number in (0, 1], or None", lambda v: 0 < v <= 1)
        checks.choice("normalize", self.normalize, ops.NORMALIZE)
        checks.choice("loss", self.loss, losses.LOSSES)
        checks.choice("backend", self.backend, ops.BACKENDS)
        if self.max_memory is not None:
            checks.integer("max_memory", self.max_memory, 1)
        if self.seed is not None:
            checks.integer("seed", self.seed, 0)
            if self.seed >= 2**64:
                raise ValueError(f"seed: expected an integer below 2**64, found {self.seed}")
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
        checks.kernel_dtype("images", images.dtype)
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
            checks.image_index(index, images)
        if isinstance(self.domain, Tensor):
            checks.domain_tensor(self.domain, images)
        if isinstance(self.domain, Occlusion):
            self.domain.check(images)
        self.classifier.check(images)


def _on(images: Tensor, value: Setting) -> Setting:
    """Give a tensor the dtype of the computation, apart from the user's graph."""
    return value.detach().to(images.dtype) if isinstance(value, Tensor) else value


def _setting(name: str, value: Setting) -> Setting:
    """Check a number or tensor (B,); a tensor without dimensions becomes the number it holds."""
    if isinstance(value, Tensor) and not value.ndim:
        value = value.item()
    checks.per_image(name, value, len(value) if isinstance(value, Tensor) else 0)
    return value if isinstance(value, Tensor) else float(value)


def _narrowed(result: AttackResult, images: Tensor) -> AttackResult:
    """Round the result to the dtype of 16-bit images, towards them, and judge what came out."""
    adv = result.adv.to(images.dtype)
    away = (adv.float() - images.float()).abs() > (result.adv - images.float()).abs()
    adv = torch.where(away, torch.nextafter(adv, images), adv)
    success = result.success.clone()
    rows = success.nonzero().flatten()
    success[rows] = result.judge(adv[rows], rows)
    result.passes.forward[rows] += 1
    return replace(result, adv=adv, success=success, images=images)
