"""Logits and gradients of a search by the traced model: folded, and in its fastest form."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from ..common.noise import noise_like
from ..common.numerics import logits_agree, rounding
from ..model.classifier import Classifier
from ..model.precision import verdict_rounding, without_tf32
from .cache import copies_of, same_bits
from .lower import lower
from .network import Network
from .state import State
from .trace import trace

LOG = logging.getLogger("sdsgsm_fast")
GRADIENT_TOLERANCE = {torch.float32: 0.02, torch.bfloat16: 0.5}  # largest error of the gradient, by its norm


class CompiledModel:
    """Logits by a lowered model.

    Parameters
    ----------
    network
        The model.
    device
        Where it is.
    exact
        Whether it differs from the model by the rounding of its dtype alone.
    """

    def __init__(self, network: Network, device: torch.device, *, exact: bool) -> None:
        self.network, self.device, self.exact = network, device, exact
        self.strict: CompiledModel | None = None

    def __call__(self, inputs: Tensor) -> Tensor:
        """Logits (B, K) of inputs that are normalised."""
        output = self.network.output
        with torch.autocast(inputs.device.type, enabled=False):
            logits: Tensor = self.network.evaluate(inputs, {output})[output]
            return logits

    @property
    def uncertainty(self) -> float:
        """Margin of a logit, in units of the largest, that leaves a verdict to the model."""
        return verdict_rounding(self.network.dtype, self.device) if self.exact else torch.inf


class Surrogate(CompiledModel):
    """Gives a search logits in a model's place, and differentiates like it.

    Parameters
    ----------
    classifier, images
        The model, held, and images (B, C, H, W) of the kind to come.
    dtype
        Of the maps: the model's own, or bfloat16.
    backend
        Whose kernels may run, as in `Attack`.

    Attributes
    ----------
    strict : CompiledModel or None
        The same in the model's own dtype, which a search in bfloat16 asks for verdicts.

    Raises
    ------
    Exception
        Whatever the model cannot be traced for; then it runs itself.
    """

    def __init__(self, classifier: Classifier, images: Tensor, dtype: torch.dtype, backend: str) -> None:
        graph = trace(classifier, images, differentiable=True)
        own, smooth = classifier.input_dtype(images), graph.jump() is None
        network = lower(graph, dtype, images.device, backend)
        super().__init__(network, images.device, exact=smooth and dtype == own)
        self.dtype, self.backend = dtype, backend
        if smooth and dtype != own:
            self.strict = CompiledModel(lower(graph, own, images.device, backend), images.device, exact=True)
        self.state = State(classifier.model)
        self._weights = copies_of(self.state)

    def current(self, classifier: Classifier) -> bool:
        """Whether the model reaches the same objects, with the same weights to the bit."""
        return self.state.same(State(classifier.model)) and same_bits(self._weights)

    def disagreement(self, classifier: Classifier, images: Tensor) -> str:
        """Where it does not give the model's own logits and gradient for an image of noise, uncounted.

        A model with gradients of its own making, by `torch.autograd.Function` or a backward hook,
        never agrees: they need not show in noise. Empty where it agrees.
        """
        forwards, noise = classifier.forwards, noise_like(images)
        try:
            with without_tf32(images.device):
                return self._disagreement(classifier, noise)
        finally:
            classifier.forwards = forwards

    def _disagreement(self, classifier: Classifier, noise: Tensor) -> str:
        logits, leaf = classifier.logits_and_leaf(noise)
        if _has_functions(logits.grad_fn):
            return "the model makes gradients of its own"
        with torch.enable_grad():
            mine = noise.detach().requires_grad_()
            found = self(classifier.inputs(mine))
            weights = torch.linspace(-1, 1, logits.shape[1], device=logits.device)
            own = classifier.gradient((logits * weights).sum(1), leaf)
            grad = classifier.gradient((found * weights).sum(1), mine)
        strict = logits if self.strict is None else self.strict(classifier.inputs(noise))
        near = logits_agree(found, logits, rounding(self.dtype))
        if not (near and logits_agree(strict, logits, rounding(logits.dtype))):
            return "its logits differ from the model's"
        alike = (grad - own).norm() <= GRADIENT_TOLERANCE[self.dtype] * own.norm()
        return "" if bool(alike) else "its gradient differs from the model's"


def prepare_surrogate(
    classifier: Classifier,
    images: Tensor,
    dtype: torch.dtype,
    backend: str,
    known: Surrogate | None,
) -> Surrogate | None:
    """`known` again if it still is the model, else another; None where the model runs itself."""
    try:
        same = known is not None and (known.dtype, known.backend) == (dtype, backend)
        if known and same and known.current(classifier) and not known.disagreement(classifier, images):
            return known
        fresh = Surrogate(classifier, images, dtype, backend)
        reason = fresh.disagreement(classifier, images)
    except Exception as error:  # whatever it stumbles over, the model itself runs
        reason = str(error) or type(error).__name__
    if reason:
        LOG.info("search: by the model itself, since the traced one cannot be used: %s", reason)
        return None
    LOG.info("search: by the traced model, in %s", str(dtype).removeprefix("torch."))
    return fresh


def _has_functions(node: Any) -> bool:
    """Whether a graph goes through a backward pass written in Python."""
    waiting, seen = [node], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            return True
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]
    return False
