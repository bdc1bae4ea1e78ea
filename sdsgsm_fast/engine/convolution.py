"""What a convolution computes, and what can be folded into it: batch norm, a sum, a ReLU."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

Ints = tuple[int, int]


@dataclass(frozen=True)
class Convolution:
    """relu(convolution(x) + bias + other), the last two where they are wanted.

    Attributes
    ----------
    weight, bias
        (outputs, inputs/groups, rows, columns) and (outputs,) or None.
    stride, padding, dilation, groups
        As in `torch.nn.functional.conv2d`.
    relu
        Whether negative results become 0.
    """

    weight: Tensor
    bias: Tensor | None
    stride: Ints
    padding: Ints
    dilation: Ints
    groups: int
    relu: bool = False

    @property
    def inner(self) -> int:
        """Products that go into an output."""
        return self.weight[0].numel()

    def scaled(self, scale: Tensor, shift: Tensor) -> Convolution:
        """Follow this convolution by y·scale + shift, (outputs,) each in double."""
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        weight = (self.weight.to(wide) * scale.to(wide)[:, None, None, None]).to(self.weight.dtype)
        bias = shift if self.bias is None else shift + scale * self.bias.double()
        return replace(self, weight=weight, bias=bias.to(self.weight.dtype))

    def in_dtype(self, dtype: torch.dtype) -> Convolution:
        """Convert to another precision, weights channels_last and the bias dense."""
        weight = self.weight.to(dtype=dtype, memory_format=torch.channels_last)
        bias = None if self.bias is None else self.bias.to(dtype).contiguous()
        return replace(self, weight=weight, bias=bias)

    def on_tiles(self) -> Convolution:
        """The same for inputs that hold their border already."""
        return replace(self, padding=(0, 0))

    def size(self, height: int, width: int) -> Ints:
        """Height and width of the output for an input's."""
        kernel = self.weight.shape[2:]
        rows, cols = (
            (n + 2 * self.padding[i] - (kernel[i] - 1) * self.dilation[i] - 1) // self.stride[i] + 1
            for i, n in enumerate((height, width))
        )
        return rows, cols


@dataclass(frozen=True)
class BatchNorm:
    """An eval-mode batch norm: (x − mean)/√(var + eps)·weight + bias, (C,) each."""

    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor
    var: Tensor
    eps: float

    def affine(self) -> tuple[Tensor, Tensor]:
        """Scale and shift in double."""
        scale = (self.var.double() + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight.double()
        shift = -self.mean.double() * scale
        return scale, shift if self.bias is None else shift + self.bias.double()

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise (B, C, …)."""
        return F.batch_norm(x, self.mean, self.var, self.weight, self.bias, False, 0.0, self.eps)
