"""The attack: its settings, one look at the clean images, the loop over them, and the result."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import Tensor

from . import losses
from .common import checks
from .common.numerics import Setting, compute_dtype
from .common.progress import Progress, reporter
from .domains import CleanBatch, Domain, DomainResult, Gradient, Occlusion, compute_domain
from .engine import can_be_recorded
from .gradients import AdaBelief, Extra, ordered
from .kernels import ops
from .loop import Loop
from .model.classifier import Classifier, Model
from .model.memory import is_shortage
from .occlusion import of_one_batch
from .result import AttackResult, Judge, Passes
from .search import Flags, SearchModel, spec_of
from .slots import Batch, Ints, LoopSettings

if TYPE_CHECKING:
    from typing_extensions import Self


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
    batch_size: int | None
    cuda_graphs: bool | None
    seed: int | None
    progress: bool | Progress
    gradient: Sequence[Extra]
    moments: AdaBelief | None
    growth: float
    refine: int
    levels: int | None


_END: Any = object()

Item = Sequence[Tensor]
"""Images and labels, and the classes to reach of a targeted attack."""


@dataclass
class _OpenBatch:
    """A batch ready for the loop, and what its result needs besides."""

    batch: Batch
    given: Tensor
    predicted: Tensor
    domain_result: DomainResult
    judge: Judge


class Attack:
    """The attack loop of METHOD.md, section 3; `SDSGSM` and the presets are settings of it.

    Parameters
    ----------
    model
        A differentiable classifier, `nn.Module` or callable: normalised images (B, C, H, W) to
        logits (B, K), or to an object or mapping that has them as "logits"; one logit z, (B, 1),
        means two classes, [0, z]. It is used in eval mode and left as it was: flags, gradients,
        buffers and the global random state. `Ensemble` makes one of many.
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
        "ce", "margin", "dlr" or "jitter"; see `losses.loss`.
    random_start
        Start from x + U(−1, 1)·E_0, drawn from `seed` for each image's index.
    restarts
        Attempts with fresh random starts on the images that are not fooled yet.
    early_stop
        Stop updating an image once it fools the model; `refine` and `levels` start there.
    bounds
        (lo, hi) of the pixel values.
    mean, std
        The model's normalisation, applied inside; one value, or one a channel; None for none.
    precision
        "float32": the model itself, in its own precision. "bfloat16": search in bfloat16. "auto":
        search in bfloat16 where the device gains from it, else in float32 by the model as it was
        traced, with folded batch norms and faster convolutions; gradients are then equal up to
        rounding. Success is the model's own verdict, in its own precision: it is asked
        wherever rounding could decide.
    backend
        "auto", "reference", "native" or "triton".
    max_memory
        Bytes of scratch space that occlusion stays within, approximately; None for no limit but
        the device's.
    batch_size
        Images that are attacked at once; one that is done makes room for the next. None for what
        suits the device: 64 on a CPU. 1 suits a model that takes no larger batches, occlusion
        included.
    cuda_graphs
        Replay the search's passes as CUDA graphs: for models whose kernels are shorter than their
        launches. None does so on a GPU for models and batches that small, after a few passes. True
        records each size of batch at once and warns where that fails; it needs images on a CUDA
        device, a precision other than "float32", and a model that looks at each image apart from
        the others of its batch; one that cannot be traced runs without.
    seed
        Seed of random starts, `Diversity` and the jitter loss; None draws one from the operating
        system for each run.
    progress
        True for a line on the terminal, or a callback ``progress(stage, done, total)``.
    gradient
        Where the gradient is taken: `LookAhead()`, `Scales(5)`, `Diversity()`, `Kernel()` of
        `sdsgsm_fast.gradients`, one of each at most, in any order. Where it is taken elsewhere than
        at the iterate, verdicts cost a forward pass of their own.
    moments
        `AdaBelief()` in place of the momentum of equation 6; `decay` is then `LookAhead`'s alone.
    growth
        γ ≥ 1, by which α grows with each update of an image (equation 14).
    refine
        Passes, forward and backward together, that an image gets once it is fooled, to find a
        smaller ℓ2 (equation 15): probes along the decision's boundary, each by the gradient of the
        margin where the last one was. Of an odd number the first halves the perturbation. The best
        point that fools is the result. With an extra that takes gradients elsewhere each of these
        gradients costs a forward pass besides.
    levels
        L ≥ 2: results lie on the grid of L values from lo to hi, 256 for 8-bit files, and success
        is judged there (equation 16), by 10 more looks at the model at most, of which all but the
        first two may take a backward pass too, and one look at the rounded image where they fail.
        None for no grid. Images between values of the grid are taken to it, if need be beyond `eps`.

    Raises
    ------
    ValueError, TypeError
        If a setting is out of range. Calls raise them for images, labels and target.

    Notes
    -----
    An image's result does not depend on the other images of its batch, up to the model's own float
    rounding of different batch sizes.
    """

    measure_skipped = True  # whether `Occlusion` scores windows of images that the model misclassifies

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
        gain: float = 0.5,
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
        batch_size: int | None = None,
        cuda_graphs: bool | None = None,
        seed: int | None = None,
        progress: bool | Progress = False,
        gradient: Sequence[Extra] = (),
        moments: AdaBelief | None = None,
        growth: float = 1.0,
        refine: int = 0,
        levels: int | None = None,
    ) -> None:
        self.classifier = Classifier(model, mean=mean, std=std, precision=precision, batch_size=batch_size)
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
        self.batch_size = batch_size
        self.cuda_graphs = cuda_graphs
        self.seed = seed
        self.progress = reporter(progress)
        self.gradient, self.moments = ordered(gradient), moments
        self.growth, self.refine, self.levels = growth, refine, levels
        self.search = SearchModel(
            self.classifier, cuda_graphs=cuda_graphs, precise=bool(refine), margins=bool(refine or levels)
        )
        self._check_settings()

    def __call__(self, images: Tensor, labels: Tensor, *, target: Tensor | None = None) -> Tensor:
        """Adversarial images (B, C, H, W); see `run`."""
        return self.without_skipped().run(images, labels, target=target).adv

    def without_skipped(self) -> Self:
        """The same attack, without windows of images that the model misclassifies.

        Their domains and scores are zeros. For whoever does not want to see them.
        """
        other = copy(self)
        other.measure_skipped = False
        return other

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
            (B,) integer at least 0, the images' places in their data set, from which random numbers
            are drawn; None for 0 … B−1.

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
        places = torch.arange(len(images)) if index is None else index
        with self._working():
            prepared = self._prepare(images, labels, target, places)
            loop = self._loop(images, most=prepared.batch.left)
            loop.add(prepared.batch)
            self._report(len(images) - prepared.batch.left, len(images))
            while loop.busy:
                loop.step()
                self._report(len(images) - prepared.batch.left, len(images))
            return self._result(prepared)

    def stream(self, batches: Iterable[Item], *, device: torch.device | str | None = None) -> Iterator[AttackResult]:
        """Attack batch after batch; the next one's images take the slots of those that are done.

        Parameters
        ----------
        batches
            Pairs (images, labels), or (images, labels, target), as `run` takes them; a `DataLoader`
            for instance. The next is asked for when fewer images wait than there are slots.
        device
            Where to move them first; None leaves them where they are.

        Yields
        ------
        AttackResult
            One a batch, as soon as all its images are done; `index` has their places in the
            stream. Results are those of `run`, whatever the batches.

        Raises
        ------
        ValueError, TypeError
            As `run`; also for a setting that is a tensor, since it belongs to one batch, and for
            a device that is not there.

        Notes
        -----
        Between two results the model is as it was, and its owner may use it, also to train it.
        """
        for name in ("eps", "alpha", "background", "domain"):
            if isinstance(getattr(self, name), Tensor):
                raise ValueError(f"{name}: a stream takes one setting for all images, not a tensor")
        if isinstance(self.domain, Occlusion) and of_one_batch(self.domain.fill):
            raise ValueError("fill: a stream takes one fill for all images, not one an image")
        if device is not None:
            checks.usable("device", device)
        return self._stream(iter(batches), device)

    def _stream(self, batches: Iterator[Item], device: torch.device | str | None) -> Iterator[AttackResult]:
        loop: Loop | None = None
        open_batches: list[_OpenBatch] = []
        seen, more = 0, True
        while more or open_batches:
            while more and (loop is None or loop.slots.waiting < loop.slots.size):
                item = next(batches, _END)  # with the random state and the model as their owner's
                if item is _END:
                    more = False
                    self._model_is_back(open_batches)
                    break
                images, labels, target = _unpacked(item, device)
                self._model_is_back(open_batches, except_like=images)
                images = images.clone()  # its owner may fill the next one into the same memory
                self._check_batch(images, labels, target, None)
                places = torch.arange(seen, seen + len(images))
                seen += len(images)
                with self._working():
                    open_batches.append(self._prepare(images, labels, target, places))
                    loop = loop or self._loop(images)
                loop.add(open_batches[-1].batch)
            with self._working():
                while loop is not None and loop.busy and all(p.batch.left for p in open_batches):
                    loop.step()
                    self._report(seen - loop.slots.waiting - len(loop.slots.used), seen)
                    if more and loop.slots.waiting < loop.slots.size:
                        break
                finished = [self._result(p) for p in open_batches if not p.batch.left]
            open_batches = [p for p in open_batches if p.batch.left]
            yield from finished
            if finished:
                self._model_is_back(open_batches)

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Hold the model; without gradient but where one is asked for."""
        # An inference tensor cannot take part in a graph; a copy of it can.
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            self.classifier.frozen(),
        ):
            yield

    def _report(self, done: int, total: int) -> None:
        if self.progress and total:
            self.progress("attack", done, total)

    def _loop(self, images: Tensor, most: int | None = None) -> Loop:
        """Slots for images of this kind, `most` of them."""
        slots = self.batch_size or self.search.slots_for(images)
        slots = slots if most is None else max(1, min(slots, most))
        seed = secrets.randbits(63) if self.seed is None else self.seed
        return Loop(self._loop_settings, self.search, slots, seed)

    @property
    def _loop_settings(self) -> LoopSettings:
        return LoopSettings(**{f.name: getattr(self, f.name) for f in fields(LoopSettings)})

    def _prepare(self, images: Tensor, labels: Tensor, target: Tensor | None, places: Tensor) -> _OpenBatch:
        """One look at clean images serves the skipping, the domain and the first step."""
        given = images.clone() if images.is_inference() else images.detach()
        exact = given.to(compute_dtype(given)).as_subclass(Tensor)
        labels = labels.clone().long().as_subclass(Tensor)
        target = None if target is None else target.clone().long().as_subclass(Tensor)
        judge = Judge(self.classifier, labels, target)
        if not len(exact):
            nothing = DomainResult(exact.new_empty((0, *exact.shape[2:])))
            return self._open_batch(exact, given, judge, places, nothing, labels, None, 0)
        self._prepare_model(exact)
        self.search.use(exact)
        before = self.classifier.forwards
        clean, verdict_passes = self._evaluate_clean(exact, labels, target)
        looked = self.classifier.forwards
        correct = clean.predicted == labels
        some = isinstance(self.domain, Occlusion) and not self.measure_skipped
        measured = correct if some else torch.ones_like(correct)
        domain_result = compute_domain(
            self.domain, clean, measured,
            backend=self.backend, max_memory=self.max_memory, progress=self.progress,
        )  # fmt: skip
        rescored = domain_result.rescored
        own_passes = verdict_passes if rescored is None else verdict_passes + rescored.cpu()
        spent = self.classifier.forwards - looked - (0 if rescored is None else int(rescored.sum()))
        forward = math.ceil((looked - before - int(verdict_passes.sum())) / len(exact)) + own_passes
        forward += measured.cpu() * math.ceil(spent / max(1, int(measured.sum())))
        grad = None if self._loop_settings.late else clean.grad
        return self._open_batch(exact, given, judge, places, domain_result, clean.predicted, grad, forward)

    def _open_batch(
        self, images: Tensor, given: Tensor, judge: Judge, places: Tensor, domain_result: DomainResult,
        predicted: Tensor, grad: Tensor | None, forward: int | Tensor,
    ) -> _OpenBatch:  # fmt: skip
        """Put together what the loop takes."""
        correct = predicted == judge.labels
        moves = (torch.as_tensor(self.eps) > 0).to(correct.device)
        if grad is not None:
            checks.finite_gradient(grad, places, correct & moves)
        by_gradient = isinstance(self.domain, Gradient)
        none = torch.zeros(len(images), dtype=torch.int64)
        batch = Batch(
            images, judge.labels, judge.target, None if self.domain is None else domain_result.domain,
            _on(images, self.eps), _on(images, self.alpha), _on(images, self.background), grad,
            places.cpu().long().numpy(), (correct & moves).cpu().numpy(),
            (none + torch.as_tensor(forward).cpu()).numpy(), (none + by_gradient).numpy(),
            grad_counted=by_gradient,
        )  # fmt: skip
        return _OpenBatch(batch, given, predicted, domain_result, judge)

    def _result(self, p: _OpenBatch) -> AttackResult:
        """Everything that was found out about a batch."""
        b = p.batch

        def on_device(values: Ints | Flags) -> Tensor:
            return torch.from_numpy(values).to(p.predicted.device)

        result = AttackResult(
            adv=b.adv, success=on_device(b.success), skipped=p.predicted != b.labels,
            predicted=p.predicted, updates=on_device(b.updates),
            domain=p.domain_result.domain, scores=p.domain_result.scores, rescored=p.domain_result.rescored,
            passes=Passes(on_device(b.forward), on_device(b.backward)), index=on_device(b.places.copy()),
            images=b.images, bounds=self.bounds, judge=p.judge,
        )  # fmt: skip
        return result if p.given.dtype == b.images.dtype else _narrowed(result, p.given)

    def _prepare_model(self, images: Tensor) -> None:
        """Have the model ready for a search with images like these."""
        self.search.prepare(images, backend=self.backend, updates=self.steps * self.restarts)

    def _model_is_back(self, open_batches: list[_OpenBatch], except_like: Tensor | None = None) -> None:
        """Look at the model again after it was in its owner's hands.

        Images like `except_like` are left to `_prepare`, which follows.
        """
        batches = [p.batch.images for p in open_batches if p.batch.left]
        if except_like is not None:
            batches = [images for images in batches if spec_of(images) != spec_of(except_like)]
        prepared = self.search.with_surrogate(batches)
        if prepared:
            with self._working():
                for images in prepared:
                    self._prepare_model(images)

    def _evaluate_clean(self, images: Tensor, labels: Tensor, target: Tensor | None) -> tuple[CleanBatch, Tensor]:
        """Logits of the clean images and, where somebody needs it, the loss's gradient.

        Also, for each image, how often the model itself was asked because the search was in doubt.
        """
        needs_grad = isinstance(self.domain, Gradient) or not self._loop_settings.late
        size = min(self.batch_size or self.search.slots_for(images), len(images))
        found: list[tuple[Tensor, Tensor | None, Tensor]] = []
        while (at := sum(len(logits) for logits, *_ in found)) < len(images):
            part = slice(at, at + size)
            few = None if target is None else target[part]
            forwards = self.classifier.forwards
            try:
                found.append(self._evaluate(images[part], labels[part], few, needs_grad))
            except RuntimeError as error:
                if size == 1 or not is_shortage(error):
                    raise
                size //= 2
                self.search.limit_slots(images, size)
                self.classifier.forwards = forwards
        logits, grads, verdict_passes = (list(x) for x in zip(*found, strict=True))
        grad = torch.cat(grads) if needs_grad else None
        clean = CleanBatch(self.classifier, images, labels, target, torch.cat(logits), grad)
        return clean, torch.cat(verdict_passes)

    def _evaluate(
        self, images: Tensor, labels: Tensor, target: Tensor | None, needs_grad: bool
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        none = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        passed = self.classifier.logits_and_leaf(images, search=True) if needs_grad else None
        logits, verdict_passes = self._verdicts(images, None if passed is None else passed[0].detach())
        checks.classes_in_range("labels", labels, logits.shape[1])
        if target is not None:
            checks.classes_in_range("target", target, logits.shape[1])
        if passed is None:
            return logits, None, none + _moved(verdict_passes, images)
        with torch.enable_grad():
            loss = losses.loss(self.loss, passed[0], labels, target)
        return logits, self.classifier.gradient(loss, passed[1]), none + _moved(verdict_passes, images)

    def _verdicts(self, images: Tensor, found: Tensor | None) -> tuple[Tensor, Tensor | int]:
        """Logits of which the largest is the model's own, given those of a search."""
        sure = None if found is None else self.classifier.sure(found)
        if found is not None and sure is None:
            return found, 0
        # Occlusion compares logits before and after, in the model's own precision.
        precise = isinstance(self.domain, Occlusion)
        if precise or found is None or sure is None or not sure.any():
            logits, passes = self.classifier.verdicts(images)
            return logits, passes - 1
        own_passes = (~sure).long()
        if bool(own_passes.any()):
            found = found.to(compute_dtype(found)).clone()
            logits, passes = self.classifier.verdicts(images[~sure])
            own_passes[~sure] = passes.to(own_passes.device)
            found[~sure] = logits.to(found.dtype)
        return found, own_passes

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
        if self.batch_size is not None:
            checks.integer("batch_size", self.batch_size, 1)
        if self.moments is not None and not isinstance(self.moments, AdaBelief):
            raise TypeError(f"moments: expected AdaBelief(…) or None, found {type(self.moments).__name__}")
        checks.number("growth", self.growth, "a finite number of at least 1", lambda v: 1 <= v < math.inf)
        checks.integer("refine", self.refine, 0)
        if self.levels is not None:
            checks.integer("levels", self.levels, 2)
            if self.levels > 2**16:
                raise ValueError(f"levels: expected at most 65536, found {self.levels}")
        if self.cuda_graphs and (self.refine or self.levels or self.loss == "jitter"):
            raise ValueError("cuda_graphs: not with refine, levels or loss 'jitter', whose passes are not recorded")
        if self.cuda_graphs and self.classifier.precision == "float32":
            raise ValueError(
                "cuda_graphs: precision 'float32' runs the model itself, which is not recorded; "
                "use 'auto' or 'bfloat16'"
            )
        if self.seed is not None:
            checks.integer("seed", self.seed, 0)
            if self.seed >= 2**64:
                raise ValueError(f"seed: expected an integer below 2**64, found {self.seed}")
        width = self.bounds[1] - self.bounds[0]
        if not isinstance(self.eps, Tensor) and self.eps > width * (1 + checks.TOLERANCE):
            raise ValueError(
                f"eps: expected at most {width:g}, the width of bounds, found {self.eps:g}; 8/255 of it is usual"
            )
        if bool((torch.as_tensor(self.background) > 1).any()):
            raise ValueError(f"background: expected values in [0, 1], found {self.background}")
        known = self.domain is None or isinstance(self.domain, Tensor) or callable(self.domain)
        if not known:
            raise TypeError(
                "domain: expected Occlusion, Gradient, None, a tensor or a callable, "
                f"found {type(self.domain).__name__}"
            )

    def _check_batch(self, images: Tensor, labels: Tensor, target: Tensor | None, index: Tensor | None) -> None:
        checks.image_batch("images", images)
        checks.kernel_dtype("images", images.dtype)
        checks.values_in_bounds(images, self.bounds)
        checks.class_indices("labels", labels, images)
        if target is not None:
            checks.class_indices("target", target, images)
            if bool((target == labels).any()):
                raise ValueError(
                    f"target: expected classes other than labels, found the same for {checks.named(target == labels)}"
                )
        for name in ("eps", "alpha", "background"):
            value = getattr(self, name)
            if isinstance(value, Tensor):
                checks.per_image(name, value, len(images))
                checks.same_device(name, value, images)
        if index is not None:
            checks.image_index(index, images)
        for extra in self.gradient:
            extra.check(images)
        for name in ("levels", "refine"):  # rounding to 16 bits would undo what they find
            if getattr(self, name) and images.dtype in (torch.float16, torch.bfloat16):
                raise TypeError(f"{name}: expected images of 32 or 64 bits, found {images.dtype}; use .float()")
        if isinstance(self.domain, Tensor):
            checks.domain_tensor(self.domain, images)
        if isinstance(self.domain, Occlusion):
            self.domain.check(images)
        if self.cuda_graphs and not can_be_recorded(images):
            raise ValueError(f"cuda_graphs: expected images on a CUDA device, found them on {images.device}")
        self.classifier.check(images)


def _unpacked(item: Item, device: torch.device | str | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Images, labels and target of an item of a stream."""
    if not isinstance(item, (tuple, list)) or len(item) not in (2, 3):
        raise TypeError(f"batches: expected (images, labels) or (images, labels, target), found {type(item).__name__}")
    for name, value in zip(("images", "labels", "target"), item, strict=False):
        checks.tensor(name, value)
    if device is None:
        moved = list(item)
    else:  # a copy to the host that nobody waits for is not there yet
        ahead = torch.device(device).type != "cpu"
        moved = [value.to(device, non_blocking=ahead) for value in item]
    return moved[0], moved[1], moved[2] if len(moved) == 3 else None


def _moved(passes: Tensor | int, images: Tensor) -> Tensor | int:
    """Counts on the images' device."""
    return passes.to(images.device) if isinstance(passes, Tensor) else passes


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
