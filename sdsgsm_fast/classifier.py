"""The user's model as the rest of the package sees it: frozen, normalised, checked, counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from . import checks

Model = Callable[[Tensor], Any]

PRECISIONS = ("auto", "float32", "bfloat16")


class Classifier:
    """A model that takes images in their bounds and returns logits.

    Parameters
    ----------
    model
        An `nn.Module` or any differentiable callable: normalised images (B, C, H, W) to logits
        (B, K), or to an object with the attribute `logits`.
    mean, std
        The model's normalisation (x − mean)/std, one value or one a channel; None for none.
    precision
        "float32" is the model in its own precision. "bfloat16" lets `logits` and `trace` run under
        bfloat16 autocast where they are called with ``search=True``. "auto" is "float32".

    Attributes
    ----------
    forwards, backwards : int
        Images that have passed through the model, forward and backward, since construction.
    """

    def __init__(
        self,
        model: Model,
        *,
        mean: checks.PerChannel | None = None,
        std: checks.PerChannel | None = None,
        precision: str = "auto",
    ) -> None:
        if not callable(model):
            raise TypeError(f"model: expected a callable, found {type(model).__name__}")
        checks.choice("precision", precision, PRECISIONS)
        self.model = model
        self.mean = mean
        self.std = std
        self.reduced = precision == "bfloat16"
        self.forwards = 0
        self.backwards = 0

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Hold the model in eval mode and without parameter gradients; leave it as it was."""
        module = self.model if isinstance(self.model, nn.Module) else nn.Module()
        modes = [(m, m.training) for m in module.modules()]
        wanted = [p for p in module.parameters() if p.requires_grad]
        buffers = [
            (m, name, buffer, buffer._version, buffer.clone())
            for m in module.modules()
            for name, buffer in m._buffers.items()
            if buffer is not None
        ]
        devices = {b.device.index for _, _, b, _, _ in buffers if b.is_cuda}
        devices |= {p.device.index for p in module.parameters() if p.is_cuda}
        with torch.random.fork_rng(devices=sorted(d for d in devices if d is not None)):
            try:
                for m, _ in modes:
                    m.training = False
                for p in wanted:
                    p.requires_grad_(False)
                yield
            finally:
                for m, training in modes:
                    m.training = training
                for p in wanted:
                    p.requires_grad_(True)
                _restore(buffers)

    def input_dtype(self, images: Tensor) -> torch.dtype:
        """Dtype in which the model takes its input: that of its parameters, else of `images`."""
        if isinstance(self.model, nn.Module):
            for p in self.model.parameters():
                if p.is_floating_point():
                    return p.dtype
        return images.dtype

    def normalised(self, images: Tensor) -> Tensor:
        """(x − mean)/std in the images' dtype, then converted to the model's."""
        if self.mean is not None or self.std is not None:
            channels = images.shape[1]
            centre = checks.per_channel("mean", 0.0 if self.mean is None else self.mean, channels)
            scale = checks.scale(1.0 if self.std is None else self.std, channels)
            images = (images - centre.to(images)[:, None, None]) / scale.to(images)[:, None, None]
        return images.to(self.input_dtype(images))

    def forward(self, inputs: Tensor, *, search: bool = False) -> Tensor:
        """Logits (B, K) of inputs that are already normalised, counted and checked.

        Raises
        ------
        TypeError, ValueError
            If the model returns anything but a floating tensor (B, K ≥ 2), or lies on another
            device than `inputs`.
        """
        self._check_device(inputs)
        reduced = self.reduced and search
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=reduced):
            output = self.model(inputs)
        logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
        if not isinstance(logits, Tensor):
            raise TypeError(
                "model: expected a tensor or an object with .logits as output, "
                f"found {type(output).__name__}"
            )
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
    def logits(self, images: Tensor, *, search: bool = False) -> Tensor:
        """Logits (B, K) of images in their bounds, without gradient."""
        return self.forward(self.normalised(images), search=search)

    def trace(self, images: Tensor, *, search: bool = False) -> tuple[Tensor, Tensor]:
        """Logits of images in their bounds and the leaf that `gradient` differentiates for."""
        with torch.enable_grad():
            leaf = images.detach().requires_grad_()
            return self.forward(self.normalised(leaf), search=search), leaf

    def gradient(self, loss: Tensor, leaf: Tensor) -> Tensor:
        """∇ of a loss (B,), summed over the images, with respect to the images of `trace`.

        Raises
        ------
        ValueError
            If the loss does not depend on the images, or the gradient is not finite somewhere.
        """
        grad = None
        if loss.requires_grad:
            # Autocast around the call would reach into the backward pass as well.
            with torch.autocast(leaf.device.type, enabled=False):
                (grad,) = torch.autograd.grad(loss.sum(), leaf, allow_unused=True)
        if grad is None:
            raise ValueError("model: its output does not depend on the images, no gradient flows")
        self.backwards += len(leaf)
        finite = torch.linalg.vector_norm(grad, torch.inf, dim=(1, 2, 3)).isfinite()
        if not bool(finite.all()):
            raise ValueError(f"model: the gradient is not finite for {checks.named(~finite)}")
        return grad

    def _check_device(self, inputs: Tensor) -> None:
        if isinstance(self.model, nn.Module):
            parameter = next(self.model.parameters(), None)
            if parameter is not None and parameter.device != inputs.device:
                raise ValueError(
                    f"images: expected device {parameter.device} as the model, "
                    f"found {inputs.device}"
                )


def _restore(buffers: list[tuple[nn.Module, str, Tensor, int, Tensor]]) -> None:
    """Put back every buffer object, and its values where they were written to."""
    with torch.no_grad():
        for module, name, buffer, version, copy in buffers:
            module._buffers[name] = buffer
            if buffer._version != version:
                buffer.copy_(copy)
