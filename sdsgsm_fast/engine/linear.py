"""A product with a constant matrix as a step runs it: by oneDNN, activation included.

Weights are laid out once. PyTorch hands float32 products to MKL, which takes twice as long on AMD's
CPUs, and lays bfloat16 weights out at every call.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .onednn import onednn_enabled


class Activation(NamedTuple):
    """ReLU or GELU, as oneDNN calls it; "none" for none."""

    name: str = "none"
    algorithm: str = ""

    def __call__(self, x: Tensor) -> Tensor:
        """The activation of x."""
        if self.name == "gelu":
            return F.gelu(x, approximate=self.algorithm)
        return x.relu() if self.name == "relu" else x

    def gradient(self, grad: Tensor, x: Tensor) -> Tensor:
        """Gradient for x, given that for the result."""
        if self.name == "gelu":
            return torch.ops.aten.gelu_backward(grad, x, approximate=self.algorithm)  # type: ignore[no-any-return]
        return torch.ops.aten.threshold_backward(grad, x, 0) if self.name == "relu" else grad


class Linear:
    """Computes activation(x @ matrix + bias); weights are laid out when they are first needed.

    Parameters
    ----------
    matrix, bias
        (inputs, outputs), and (outputs,) or None, for which `runs` holds.
    activation
        What follows.
    """

    def __init__(self, matrix: Tensor, bias: Tensor | None, activation: Activation) -> None:
        self.matrix, self.bias, self.activation = matrix, bias, activation
        self._packed: dict[bool, Tensor] = {}  # by whether it is for the gradient

    def __call__(self, x: Tensor) -> Tensor:
        """(rows, inputs) to (rows, outputs); differentiable for x."""
        x = x.to(self.matrix.dtype)
        if torch.is_grad_enabled() and x.requires_grad:
            y: Tensor = _Differentiable.apply(x, self)  # type: ignore[no-untyped-call]
            return y
        return self.forward(x, self.activation)

    def forward(self, x: Tensor, activation: Activation) -> Tensor:
        """Compute the result from inputs of the matrix's dtype."""
        return _onednn(x, self._laid_out(False), self.bias, activation)

    def backward(self, grad: Tensor) -> Tensor:
        """Gradient (rows, inputs) for the input, given that of the product."""
        return _onednn(grad, self._laid_out(True), None, Activation())

    def _laid_out(self, gradient: bool) -> Tensor:
        if gradient not in self._packed:
            self._packed[gradient] = _packed(self.matrix.t() if gradient else self.matrix)
        return self._packed[gradient]


RELU = Activation("relu")
ACTIVATIONS = (RELU, Activation("gelu", "none"), Activation("gelu", "tanh"))


class _Differentiable(torch.autograd.Function):
    """A product whose matrix is a constant; the activation needs what it was given again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: Linear) -> Tensor:
        y = linear.forward(x, Activation())
        ctx.linear = linear
        ctx.save_for_backward(y if linear.activation.name != "none" else None)
        return linear.activation(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        linear = ctx.linear
        return linear.backward(grad if y is None else linear.activation.gradient(grad, y)), None


def runs(matrix: Tensor) -> bool:
    """Whether oneDNN's products are there for a matrix."""
    known = matrix.is_cpu and matrix.dtype in (torch.float32, torch.bfloat16) and matrix.numel() > 0
    return known and onednn_enabled() and _agrees(matrix.dtype)


@cache
def _agrees(dtype: torch.dtype) -> bool:
    """Try them once: PyTorch keeps them private and may change them."""
    x = torch.linspace(-1, 1, 15, dtype=dtype).view(3, 5)
    matrix = torch.linspace(-1, 1, 20, dtype=dtype).view(5, 4)
    bias = torch.linspace(0, 1, 4, dtype=dtype)
    tolerance = 64 * torch.finfo(dtype).eps
    plain = torch.addmm(bias, x, matrix)
    try:
        return all(
            torch.allclose(_onednn(x, _packed(matrix), bias, a), a(plain), tolerance, tolerance)
            for a in (Activation(), *ACTIVATIONS)
        )
    except Exception:  # whatever has changed, PyTorch's own product is there
        return False


def _packed(matrix: Tensor) -> Tensor:
    """The matrix (inputs, outputs) as oneDNN wants it, an opaque tensor."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(matrix.t().contiguous())
    return packed


def _onednn(x: Tensor, packed: Tensor, bias: Tensor | None, activation: Activation) -> Tensor:
    run = torch.ops.mkldnn._linear_pointwise
    y: Tensor = run(x.contiguous(), packed, bias, activation.name, [], activation.algorithm)
    return y
