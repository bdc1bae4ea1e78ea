"""The model as a search asks it: by its traced form where that is faster, judged by itself."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from . import losses
from .common.batches import filled, steady_size
from .common.host import to_device
from .engine import (
    PATIENCE,
    GraphedFunction,
    Surrogate,
    can_be_recorded,
    prepare_surrogate,
    rows_worth_recording,
)
from .model import memory
from .model.classifier import Classifier
from .model.precision import bfloat16_pays

Flags = npt.NDArray[np.bool_]

LOG = logging.getLogger("sdsgsm_fast")
MOST_SURROGATES = 8  # kept, one for each spec of images
CPU_SLOTS = 64
CUDA_SLOTS = 4096  # not measured
CUDA_SHARE = 0.5  # of the free memory that the slots and a pass over them take; not measured
SLOT_IMAGES = 8  # tensors like the image that a slot holds, and those that an update makes
LEAST_UPDATES = 4  # of an image; for fewer a trace costs more than it saves


class SearchModel:
    """Logits and gradients for a search, from a surrogate of the model where there is one.

    Parameters
    ----------
    classifier
        The model, which has the last word.
    cuda_graphs
        Replay the passes of surrogates as CUDA graphs; None for where the host would hold a GPU up.
    precise
        Whether precision "auto" keeps the model's own dtype: a search along the decision's boundary
        loses more by rounding than bfloat16 gains.
    margins
        Whether `evaluate` may be asked for the margin's gradient.
    """

    def __init__(
        self, classifier: Classifier, *, cuda_graphs: bool | None, precise: bool = False, margins: bool = False
    ) -> None:
        self.classifier, self.cuda_graphs = classifier, cuda_graphs
        self.precise, self.margins = precise, margins
        self._surrogates: dict[Any, Surrogate] = {}  # by the images' spec
        self._graphs: dict[Any, tuple[Any, GraphedFunction]] = {}
        self._slots: dict[Any, int] = {}  # by the images' spec, on a GPU

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what was traced and learned of a device: a copy finds out for itself."""
        return vars(self) | {"_surrogates": {}, "_graphs": {}, "_slots": {}}

    def slots_for(self, images: Tensor) -> int:
        """Images like these that are attacked at once: on a GPU as many as its memory holds.

        That is found out once, so that every run has the same.
        """
        if not on_gpu(images):
            return CPU_SLOTS
        spec = spec_of(images)
        if spec not in self._slots:
            self.use(images)
            each = memory.gradient_bytes(self.classifier, images)
            each += SLOT_IMAGES * images[0].numel() * images.element_size()
            self._slots[spec] = max(1, min(CUDA_SLOTS, int(CUDA_SHARE * memory.free_bytes(images.device)) // each))
            LOG.info("search: %d images at once, of %d bytes each", self._slots[spec], each)
        return self._slots[spec]

    def limit_slots(self, images: Tensor, most: int) -> None:
        """Note that a GPU's memory was too small for more images like these at once."""
        spec = spec_of(images)
        self._slots[spec] = min(most, self._slots.get(spec, most))

    def prepare(self, images: Tensor, *, backend: str, updates: int) -> None:
        """Trace the model for images like these, or look whether an earlier trace still holds.

        `updates` are the most that an image gets: few are not worth a trace.
        """
        spec = spec_of(images)
        found = self._surrogate_of(images, backend, updates, self._surrogates.pop(spec, None))
        if found is not None:
            self._surrogates[spec] = found
        elif self.cuda_graphs:
            warnings.warn(
                "cuda_graphs: not used, the search is not by a traced model: it cannot be traced, "
                f"is not in float32, or has fewer than {LEAST_UPDATES} updates",
                stacklevel=2,
            )
        self._surrogates = dict(list(self._surrogates.items())[-MOST_SURROGATES:])
        self._graphs = {k: v for k, v in self._graphs.items() if k in self._surrogates}

    def _surrogate_of(self, images: Tensor, backend: str, updates: int, known: Surrogate | None) -> Surrogate | None:
        dtype, precision = self.classifier.input_dtype(images), self.classifier.precision
        worthwhile = updates >= LEAST_UPDATES or precision != "auto"
        if dtype != torch.float32 or precision == "float32" or not worthwhile:
            few = f"fewer than {LEAST_UPDATES} updates" if precision == "auto" else f"precision {precision!r}"
            LOG.info("search: by the model itself, with %s", few if dtype == torch.float32 else f"weights in {dtype}")
            return None
        reduced = precision == "bfloat16" or (not self.precise and bfloat16_pays(images.device))
        return prepare_surrogate(self.classifier, images, torch.bfloat16 if reduced else dtype, backend, known)

    def with_surrogate(self, batches: Iterable[Tensor]) -> list[Tensor]:
        """One batch of each spec that has a surrogate."""
        specs = {spec_of(images): images for images in batches}
        return [images for spec, images in specs.items() if spec in self._surrogates]

    def surrogate_for(self, images: Tensor) -> Surrogate | None:
        """What is asked instead of the model with images like these; None for the model."""
        return self._surrogates.get(spec_of(images))

    def use(self, images: Tensor) -> None:
        """Let the classifier search with the surrogate for images like these."""
        self.classifier.surrogate = self.surrogate_for(images)

    def graphs_for(self, images: Tensor, loss: str) -> GraphedFunction | None:
        """CUDA graphs of the passes with images like these; None without."""
        surrogate, spec = self.surrogate_for(images), spec_of(images)
        if surrogate is None or self.cuda_graphs is False or (self.cuda_graphs is None and not can_be_recorded(images)):
            return None
        # What a graph reads by address; mean and std are the same tensors while they are equal.
        held = surrogate, loss, *self.classifier.normalisation(images)
        known = self._graphs.get(spec)
        if known is None or any(a is not b for a, b in zip(known[0], held, strict=True)):
            function = partial(logits_and_gradient, self.classifier, loss)
            if self.cuda_graphs:
                known = held, GraphedFunction(function)
            else:
                most = rows_worth_recording(len(surrogate.network.steps), surrogate.network.work)
                known = held, GraphedFunction(function, patience=PATIENCE, largest=most)
            self._graphs[spec] = known
        return known[1]

    def evaluate(
        self, loss: str, adv: Tensor, labels: Tensor, target: Tensor | None, jitter: losses.Jitter | None = None
    ) -> Evaluation:
        """Logits, and the loss's gradient when it is asked for; the margin's too where `margins` is set."""
        captured = None if jitter or self.margins else self.graphs_for(adv, loss)
        if captured is not None:
            self.classifier.forwards += len(adv)
            logits, grad = captured(adv, labels, *(() if target is None else (target,)))
            return Evaluation(logits, grad, lambda *_: grad)
        # The model itself always meets the same layout, which its rounding may depend on.
        given = adv.contiguous() if self.classifier.surrogate is None else adv
        if on_gpu(adv) and not self.margins and jitter is None:  # queued before anybody waits for a verdict
            logits, known = self._in_steady_batches(loss, given, labels, target)
            return Evaluation(logits, known, lambda *_: known)
        logits, leaf, values = loss_of(self.classifier, loss, given, labels, target, jitter)

        def gradient(wanted: Flags, wants_margin: Flags | None = None) -> Tensor:
            # Zeros for the others: the surrogate's layers pass them on without computing them.
            with torch.enable_grad():
                kept = values
                if wants_margin is not None and wants_margin.any():
                    margins = losses.loss("margin", logits, labels, target).to(values.dtype)
                    kept = torch.where(_on(wants_margin, adv), margins, values)
                kept = kept if wanted.all() else torch.where(_on(wanted, adv), kept, 0)
            return self.classifier.gradient(kept, leaf)

        return Evaluation(logits, None, gradient)

    def _in_steady_batches(
        self, loss: str, adv: Tensor, labels: Tensor, target: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Logits and the loss's gradient by a batch of one of few sizes, as far as batches are not limited."""
        rows, size = len(adv), steady_size(len(adv))
        if self.classifier.batch_size is not None or size > self.slots_for(adv):
            size = rows
        given = [x if x is None else filled(x, size) for x in (adv, labels, target)]
        logits, grad = logits_and_gradient(self.classifier, loss, *given)  # type: ignore[arg-type]
        self.classifier.forwards += rows
        return logits[:rows], grad[:rows]


@dataclass(frozen=True)
class Evaluation:
    """What a pass over images gives.

    Attributes
    ----------
    logits
        (B, K).
    known
        The gradient of all images, where it has been asked of the device already; else None.
    gradient
        ``gradient(wanted, wants_margin)`` of (B,) flags: the loss's gradient of the images that are
        wanted, and the margin's of those among them that want it (None for none). What it gives for
        the other images is arbitrary.
    """

    logits: Tensor
    known: Tensor | None
    gradient: Callable[[Flags, Flags | None], Tensor]


def on_gpu(images: Tensor) -> bool:
    """Whether a wait for the device costs, and its memory says how many images go together."""
    return images.is_cuda


def _on(flags: Flags, images: Tensor) -> Tensor:
    return to_device(flags, images.device)


def logits_and_gradient(
    classifier: Classifier, loss: str, images: Tensor, labels: Tensor, target: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Logits and a loss's gradient of images in a search, uncounted."""
    forwards = classifier.forwards
    try:
        logits, leaf, values = loss_of(classifier, loss, images, labels, target)
        return logits.detach(), classifier.gradient(values, leaf)
    finally:
        classifier.forwards = forwards


def loss_of(
    classifier: Classifier,
    loss: str,
    images: Tensor,
    labels: Tensor,
    target: Tensor | None,
    jitter: losses.Jitter | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of images in a search, the leaf to differentiate for, and each image's loss."""
    logits, leaf = classifier.logits_and_leaf(images, search=True)
    with torch.enable_grad():
        return logits, leaf, losses.loss(loss, logits, labels, target, jitter, leaf)


def spec_of(images: Tensor) -> Any:
    """What images have in common that one surrogate, and one set of slots, serves."""
    return images.shape[1:], images.dtype, images.device
