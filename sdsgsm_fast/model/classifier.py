"""The user's model as the rest of the package sees it: frozen, normalised, checked, counted."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..common import checks
from ..common.batches import filled, steady_size
from ..common.host import to_device, to_host, unequal
from ..common.numerics import compute_dtype, normalised

Model = Callable[[Tensor], Any]

_LOCK = threading.Lock()
_LOCKS: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()
"""Of modules that are held: two threads would undo each other's flags."""

PRECISIONS = ("auto", "float32", "bfloat16")
PREDICTED = 128  # images of a batch whose classes alone are asked for


class SurrogateModel(Protocol):
    """Gives logits in a model's place while an attack searches."""

    @property
    def uncertainty(self) -> float:
        """Margin of a logit, in units of the largest, that leaves a verdict to the model."""

    @property
    def strict(self) -> SurrogateModel | None:
        """Who is asked for verdicts; None for the model."""

    def __call__(self, inputs: Tensor) -> Tensor:
        """Logits (B, K) of normalised inputs."""


class Classifier:
    """A model that takes images in their bounds and returns logits.

    Parameters
    ----------
    model
        An `nn.Module` or any differentiable callable: normalised images (B, C, H, W) to logits
        (B, K), or to an object or mapping that has them as "logits"; see `logits_of`.
    mean, std
        The model's normalisation (x − mean)/std, one value or one a channel; None for none.
    precision
        "float32" is the model in its own precision. "bfloat16" lets `logits_and_leaf` run under bfloat16
        autocast where it is called with ``search=True`` and there is no surrogate.
        "auto" leaves the choice to whoever searches.
    batch_size
        See below.

    Attributes
    ----------
    precision : str
        As given.
    batch_size : int or None
        Images that `logits` and occlusion give to the model at once, at most; None for no limit.
    forwards : int
        Images that have passed through the model since construction, zeroed-out copies included.
    reduced : bool
        Whether a search without a surrogate runs under bfloat16 autocast.
    surrogate : callable or None
        The surrogate that a search asks; see `engine.surrogate.Surrogate`.
    """

    def __init__(
        self,
        model: Model,
        *,
        mean: checks.PerChannel | None = None,
        std: checks.PerChannel | None = None,
        precision: str = "auto",
        batch_size: int | None = None,
    ) -> None:
        if not callable(model):
            raise TypeError(f"model: expected a callable, found {type(model).__name__}")
        checks.choice("precision", precision, PRECISIONS)
        self.model = model
        self.mean = _numbers(mean)
        self.std = _numbers(std)
        self.precision = precision
        self.batch_size = batch_size
        self.reduced = precision == "bfloat16"
        self.surrogate: SurrogateModel | None = None
        self.forwards = 0
        self._constants: dict[Any, tuple[Tensor, Tensor]] = {}  # mean and std, on a device
        self._overwrites: bool | None = None  # its input; unknown before the first pass

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the surrogate, which belongs to one attack, and what is on a device."""
        return vars(self) | {"surrogate": None, "_constants": {}}

    @property
    def module(self) -> nn.Module | None:
        """The module whose state a pass may change: the model, or the one whose method it is."""
        owner = getattr(self.model, "__self__", self.model)
        return owner if isinstance(owner, nn.Module) else None

    @property
    def device(self) -> torch.device | None:
        """Where the model's parameters are; None for one without."""
        parameter = None if self.module is None else next(self.module.parameters(), None)
        return None if parameter is None else parameter.device

    def check(self, images: Tensor) -> None:
        """Check a batch against the model's device and normalisation, without running it.

        Raises
        ------
        ValueError
            If the model lies on another device, or `mean` or `std` do not fit the channels.
        """
        if self.device is not None and self.device != images.device:
            raise ValueError(f"images: expected device {self.device} as the model, found {images.device}")
        checks.per_channel("mean", 0.0 if self.mean is None else self.mean, images.shape[1])
        checks.scale(1.0 if self.std is None else self.std, images.shape[1])

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Hold the module in eval mode and without parameter gradients; leave it as it was.

        Flags, `.grad`, buffers and the global random state come back, also after an exception. A
        callable that is no module, nor a method of one, cannot be held: it is used as it is. Of two
        threads that want one module the second waits.
        """
        module = nn.Module() if self.module is None else self.module  # one may have a length of 0
        with _lock_of(module), _held(module):
            yield

    def input_dtype(self, images: Tensor) -> torch.dtype:
        """Dtype in which the model takes its input: that of its parameters, else of `images`."""
        for p in self.module.parameters() if self.module is not None else ():
            if p.is_floating_point():
                return p.dtype
        return images.dtype

    def inputs(self, images: Tensor) -> Tensor:
        """(x − mean)/std in the compute dtype, then converted to the model's.

        A model that overwrites its input gets a copy; the first pass tells.
        """
        given = images
        if self.mean is not None or self.std is not None:
            mean, std = self.normalisation(images)
            given = normalised(images, mean, std)
        given = given.to(self.input_dtype(images))
        shared = given.data_ptr() == images.data_ptr()
        return given.clone() if shared and self._overwrites is not False else given

    def normalisation(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, (C,) each, in the compute dtype and on the device."""
        kind, device = compute_dtype(images), images.device
        mean = checks.per_channel("mean", 0.0 if self.mean is None else self.mean, images.shape[1])
        std = checks.scale(1.0 if self.std is None else self.std, images.shape[1])
        key = kind, device, tuple(mean), tuple(std)
        if key not in self._constants:  # a GPU would wait for them at every step
            with torch.inference_mode(False):
                self._constants[key] = (
                    torch.tensor(mean, dtype=kind, device=device),
                    torch.tensor(std, dtype=kind, device=device),
                )
        return self._constants[key]

    def forward(self, inputs: Tensor, *, reduced: bool = False) -> Tensor:
        """Logits (B, K) of inputs that are already normalised, counted and checked.

        `reduced` runs the model under bfloat16 autocast.

        Raises
        ------
        TypeError, ValueError
            If the model returns anything but a floating tensor (B, K ≥ 2).
        """
        before = inputs.detach().clone() if self._overwrites is None else None
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=reduced):
            output = self.model(inputs)
        if before is not None:
            self._overwrites = not torch.equal(inputs, before)
        logits = logits_of(output)
        if logits.ndim != 2 or len(logits) != len(inputs) or logits.shape[1] < 2:
            raise ValueError(
                f"model: expected logits of shape ({len(inputs)}, K) with at least two classes, "
                f"found {tuple(logits.shape)}"
            )
        if not logits.is_floating_point():
            raise TypeError(f"model: expected floating logits, found {logits.dtype}")
        self.forwards += len(inputs)
        return logits

    @torch.no_grad()
    def logits(self, images: Tensor, *, reduced: bool = False) -> Tensor:
        """Logits (B, K) of images in their bounds, without gradient."""
        parts = torch.split(images, self.batch_size) if self.batch_size and len(images) else (images,)
        found = [self.forward(self.inputs(part), reduced=reduced) for part in parts]
        return torch.cat(found) if len(found) > 1 else found[0]

    def predicted(self, images: Tensor) -> Tensor:
        """Classes (B,) of images in their bounds, by the model as it is, held in eval mode; in small batches."""
        with self.frozen():
            parts = [self.logits(part).argmax(1) for part in torch.split(images, PREDICTED)]
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64, device=images.device)

    def logits_and_leaf(self, images: Tensor, *, search: bool = False) -> tuple[Tensor, Tensor]:
        """Logits of images in their bounds and the leaf that `gradient` differentiates for."""
        with torch.enable_grad():
            leaf = images.detach().requires_grad_()
            if search and self.surrogate is not None:
                self.forwards += len(leaf)
                return self.surrogate(self.inputs(leaf)), leaf
            return self.forward(self.inputs(leaf), reduced=self.reduced and search), leaf

    def sure(self, logits: Tensor) -> Tensor | None:
        """Which logits (B, K) of a search decide like the model's own, (B,) bool; None for all."""
        if self.surrogate is None:
            return torch.zeros(len(logits), dtype=torch.bool, device=logits.device) if self.reduced else None
        return _beyond(logits, self.surrogate.uncertainty)

    @torch.no_grad()
    def verdicts(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, K) that decide like the model's own, and passes that each took, (B,) int64 on the host.

        Where a surrogate is precise (`strict`), the model is asked only where that is in doubt.
        """
        passes, rows = torch.ones(len(images), dtype=torch.int64), len(images)
        strict = None if self.surrogate is None else self.surrogate.strict
        if strict is None:
            return self.logits(images.contiguous()), passes
        size = steady_size(rows) if images.is_cuda and self.batch_size is None else rows
        found = strict(self.inputs(filled(images, size)))[:rows]
        self.forwards += rows
        doubtful = to_host(~_beyond(found, strict.uncertainty)).nonzero()[0]
        if len(doubtful):
            chosen = to_device(doubtful, images.device)
            found[chosen] = self.logits(images[chosen].contiguous()).to(found.dtype)
            passes[torch.from_numpy(doubtful)] += 1
        return found, passes

    def gradient(self, loss: Tensor, leaf: Tensor) -> Tensor:
        """∇ of a loss (B,), summed over the images, with respect to the images of `logits_and_leaf`.

        Raises
        ------
        ValueError
            If the loss does not depend on the images.
        """
        grad = None
        if loss.requires_grad:
            # Autocast around the call would reach into the backward pass as well.
            with torch.autocast(leaf.device.type, enabled=False), torch.enable_grad():
                (grad,) = torch.autograd.grad(loss.sum(), leaf, allow_unused=True)
        if grad is None:
            raise ValueError("model: its output does not depend on the images, no gradient flows")
        return grad


def logits_of(output: Any) -> Tensor:
    """The logits in what a model returned.

    That is a tensor, or an object's `.logits`, or a mapping's "logits". A single logit z, (B, 1),
    means two classes, [0, z]: class 1 where z is above 0.

    Raises
    ------
    TypeError
        If there are none; for a tuple the message says how to wrap the model.
    """
    if isinstance(output, (tuple, list)):
        kinds = ", ".join(type(part).__name__ for part in output[:4]) + (", …" if len(output) > 4 else "")
        raise TypeError(
            f"model: expected logits, found a {type(output).__name__} of ({kinds}); wrap it so that it returns "
            "one of them, for instance lambda x: model(x)[0], or as an nn.Module that holds the model"
        )
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    logits = output if isinstance(output, Tensor) else logits
    if not isinstance(logits, Tensor):
        found = type(output).__name__
        if isinstance(output, Mapping):
            found += f" with {', '.join(map(repr, list(output)[:8])) or 'nothing'}"
        raise TypeError(f'model: expected a tensor, an object with .logits or a mapping with "logits", found {found}')
    if logits.ndim == 2 and logits.shape[1] == 1:
        return F.pad(logits, (1, 0))
    return logits


def _beyond(logits: Tensor, uncertainty: float) -> Tensor:
    """Whether the largest logit leads by more than a share of the largest magnitude, (B,) bool."""
    exact = logits.detach().to(compute_dtype(logits))
    best = exact.topk(2, dim=1).values
    return (best[:, 0] - best[:, 1]) > uncertainty * exact.abs().amax(1).clamp(min=1)


def _numbers(value: checks.PerChannel | None) -> checks.PerChannel | None:
    """What a tensor or an array holds, so that nobody waits for a device again; else as it is."""
    return value.flatten().tolist() if isinstance(value, (Tensor, np.ndarray)) else value


def _lock_of(module: nn.Module) -> threading.RLock:
    """The one lock of a module."""
    with _LOCK:
        return _LOCKS.setdefault(module, threading.RLock())


@contextmanager
def _held(module: nn.Module) -> Iterator[None]:
    """Eval mode, no parameter gradients; flags, buffers and the random state come back."""
    modes = [m for m in module.modules() if getattr(m, "training", False)]
    wanted = [p for p in module.parameters() if p.requires_grad]
    buffers = [(m, dict(m._buffers), _copies(m)) for m in module.modules()]
    cuda = {p.device.index for p in module.parameters() if p.is_cuda}
    with _random_state_kept(sorted(i for i in cuda if i is not None)):
        try:
            for m in modes:
                m.training = False
            for p in wanted:
                p.requires_grad_(False)
            yield
        finally:
            for m in modes:
                m.training = True
            for p in wanted:
                p.requires_grad_(True)
            for m, objects, _ in buffers:
                _restore_objects(m, objects)
            _restore_values([pair for _, objects, copies in buffers for pair in _pairs(objects, copies)])


@contextmanager
def _random_state_kept(cuda: list[int]) -> Iterator[None]:
    """Put the global random states back if they have changed; others may draw from them, too."""
    host, devices = torch.get_rng_state(), [torch.cuda.get_rng_state(i) for i in cuda]
    try:
        yield
    finally:
        if not torch.equal(torch.get_rng_state(), host):
            torch.set_rng_state(host)
        for i, state in zip(cuda, devices, strict=True):
            if not torch.equal(torch.cuda.get_rng_state(i), state):
                torch.cuda.set_rng_state(state, i)


def _copies(module: nn.Module) -> dict[str, Tensor]:
    """Clone the buffers that exist."""
    return {name: b.detach().clone() for name, b in module._buffers.items() if b is not None}


def _pairs(objects: dict[str, Tensor | None], copies: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Each buffer with its copy."""
    return [(buffer, copies[name]) for name, buffer in objects.items() if buffer is not None]


def _restore_objects(module: nn.Module, objects: dict[str, Tensor | None]) -> None:
    """Put back every buffer object."""
    if isinstance(module._buffers, dict):  # a scripted module's buffers cannot come and go
        for name in module._buffers.keys() - objects.keys():
            del module._buffers[name]
        for name, found in objects.items():
            if module._buffers.get(name, module) is not found:
                module._buffers[name] = found


@torch.no_grad()
def _restore_values(buffers: list[tuple[Tensor, Tensor]]) -> None:
    """Put back values where they have changed: a write would count as a change of the model."""
    for (buffer, copy), differs in zip(buffers, unequal(buffers), strict=True):
        if differs:
            buffer.copy_(copy)
