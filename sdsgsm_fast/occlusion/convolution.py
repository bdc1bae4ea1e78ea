"""A convolution with all that can be folded into it: batch norm, a sum, a ReLU."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backends import choose, native
from . import winograd

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
    packed
        The weights as oneDNN wants them, an opaque tensor; None to use `weight`.
    parts
        The weights as `winograd.pack` returns them; None to use `weight`.
    matrix
        The weights of one matrix product, (rows·columns·inputs, outputs); None to convolve.
    """

    weight: Tensor
    bias: Tensor | None
    stride: Ints
    padding: Ints
    dilation: Ints
    groups: int
    relu: bool = False
    packed: Tensor | None = None
    parts: Tensor | None = None
    matrix: Tensor | None = None

    def scaled(self, scale: Tensor, shift: Tensor) -> Convolution:
        """Follow this convolution by y·scale + shift, (outputs,) each in double."""
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        weight = (self.weight.to(wide) * scale.to(wide)[:, None, None, None]).to(self.weight.dtype)
        bias = shift if self.bias is None else shift + scale * self.bias.double()
        return replace(self, weight=weight, bias=bias.to(self.weight.dtype))

    def in_dtype(self, dtype: torch.dtype) -> Convolution:
        """Convert to another precision, weights channels_last."""
        weight = self.weight.to(dtype=dtype, memory_format=torch.channels_last)
        return replace(self, weight=weight, bias=None if self.bias is None else self.bias.to(dtype))

    def takes_winograd(self, backend: str) -> bool:
        """Whether Winograd's products are faster, for outputs that they suit.

        Measured with AVX-512 against oneDNN: 1.6 to 2 times as fast from 32 channels on, level at
        16; with AVX2 1.1 times the speed of oneDNN with AVX-512.
        """
        unit = (1, 1)
        return (
            tuple(self.weight.shape[2:]) == (3, 3)
            and self.stride == unit
            and self.dilation == unit
            and self.groups == 1
            and min(self.weight.shape[:2]) >= 32
            and self.weight.dtype == torch.float32
            and self.weight.is_cpu
            and choose(backend, self.weight) is native
        )

    def prepared(self, shape: tuple[int, ...], padded: bool, backend: str) -> Convolution:
        """With the weights laid out for inputs of `shape`, where that pays."""
        padding = (0, 0) if padded else self.padding
        height, width = self._size(shape, padding)
        if self.takes_winograd(backend) and winograd.suits(height, width):
            return replace(self, parts=winograd.pack(self.weight))
        if not _onednn(self.weight):
            return self
        if self._product_pays() and is_product(self.weight[0].numel(), height * width):
            return replace(self, matrix=self.weight.permute(2, 3, 1, 0).flatten(0, 2).contiguous())
        packed = torch.ops.mkldnn._reorder_convolution_weight(
            self.weight, padding, self.stride, self.dilation, self.groups, list(shape)
        )
        return replace(self, packed=packed)

    def __call__(self, x: Tensor, other: Tensor | None = None, *, padded: bool = False) -> Tensor:
        """Convolve; `padded` inputs hold their border already."""
        x = x.to(self.weight.dtype)
        padding = (0, 0) if padded else self.padding
        if other is not None:
            other = other.to(self.weight.dtype)
        if self.parts is not None:
            outputs = len(self.weight)
            return winograd.convolve(x, self.parts, outputs, self.bias, other, padding, self.relu)
        if self.packed is not None:
            return self._fused(x, other, padding)
        if self.matrix is not None:
            y = self._product(x, self.matrix, padding)
        else:
            y = F.conv2d(
                x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups
            )
        if other is not None:
            y += other
        return y.relu_() if self.relu else y

    def _product_pays(self) -> bool:
        return self.groups == 1 and self.weight.dtype == torch.float32

    def _size(self, shape: tuple[int, ...], padding: Ints) -> Ints:
        """Height and width of the output for inputs of `shape`."""
        kernel = self.weight.shape[2:]
        rows, cols = (
            (shape[2 + i] + 2 * padding[i] - (kernel[i] - 1) * self.dilation[i] - 1)
            // self.stride[i]
            + 1
            for i in (0, 1)
        )
        return rows, cols

    def _product(self, x: Tensor, matrix: Tensor, padding: Ints) -> Tensor:
        """One matrix product over all outputs of all images: each weight is read once a batch."""
        if any(padding):
            x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
        pixels = x.permute(0, 2, 3, 1).contiguous()
        batch, rows, cols, channels = pixels.stride()
        height, width = self._size(tuple(x.shape), (0, 0))
        kernel = self.weight.shape[2:]
        read = pixels.as_strided(
            (len(x), height, width, *kernel, x.shape[1]),
            (batch, rows * self.stride[0], cols * self.stride[1],
             rows * self.dilation[0], cols * self.dilation[1], channels),
        ).reshape(-1, len(matrix))  # fmt: skip
        y = read @ matrix if self.bias is None else torch.addmm(self.bias, read, matrix)
        return y.view(len(x), height, width, -1).permute(0, 3, 1, 2)

    def _fused(self, x: Tensor, other: Tensor | None, padding: Ints) -> Tensor:
        """One call of oneDNN."""
        shape: tuple[Any, ...] = (padding, self.stride, self.dilation, self.groups)
        unary = "relu" if self.relu else None
        if other is None:
            y: Tensor = torch.ops.mkldnn._convolution_pointwise(
                x, self.packed, self.bias, *shape, unary or "none", [], ""
            )
            return y
        layout = torch.channels_last
        y = torch.ops.mkldnn._convolution_pointwise.binary(
            x, other.contiguous(memory_format=layout), self.packed, self.bias, *shape,
            "add", 1.0, unary, [], "",
        )  # fmt: skip
        return y


def is_product(inner: int, pixels: int) -> bool:
    """Whether a float32 convolution on a CPU is faster as one matrix product.

    `inner` products go into each output, `pixels` is the size of a map. oneDNN reads the weights
    again for every image: measured 200 GFLOP/s for 512 channels on 4×4, 310 as a product; from
    7×7 on they are level.
    """
    return pixels <= 25 and inner >= 1024


def onednn_enabled() -> bool:
    """Whether PyTorch has oneDNN and may use it."""
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return bool(available and torch.backends.mkldnn.enabled)


def _onednn(weight: Tensor) -> bool:
    """Whether oneDNN's fused convolutions are there for a tensor; PyTorch keeps them private."""
    return bool(
        weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.bfloat16)
        and onednn_enabled()
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_convolution_weight")
    )


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
