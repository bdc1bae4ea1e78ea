"""A convolution as a step runs it: in the form that is fastest for the size of its outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..kernels import native, ops
from ..kernels.backends import choose
from ..kernels.calls import Paste
from ..model.precision import has_amx
from . import cudnn, linear, winograd
from .convolution import Convolution, Ints
from .linear import RELU, Activation, Linear
from .onednn import onednn_enabled

LAYOUT = torch.channels_last
LEAST_CHANNELS = 32  # of a convolution by Winograd's products
WORTH_COPYING = 512  # products an output from which fewer images are worth their copies


class Layer:
    """Computes a convolution; weights are laid out when a form is first needed.

    Parameters
    ----------
    convolution
        What to compute.
    backend
        Whose kernels may compute it, as in `occlusion_scores`.
    """

    def __init__(self, convolution: Convolution, backend: str) -> None:
        self.convolution, self.backend = convolution, backend
        self.winograd = takes_winograd(convolution, backend)
        self.linear = linear_of(convolution)
        self._weights: dict[Any, Tensor] = {}

    def on_tiles(self) -> Layer:
        """The same for inputs that hold their border; weights are laid out once for both."""
        twin = copy(self)
        twin.convolution = self.convolution.on_tiles()
        return twin

    def form(self, height: int, width: int) -> str:
        """How outputs of a size are computed.

        By "winograd", "linear" (a product for each pixel), "product" (one of what the kernel
        reads), "fused" or "cudnn" (oneDNN's or cuDNN's convolution with all that follows it), or
        "plain" (PyTorch's).
        """
        if self.winograd and winograd.tile_for(height, width, self.convolution.stride[0]):
            return "winograd"
        if self.linear is not None:
            return "linear"
        if cudnn.cudnn_runs(self.convolution):
            return "cudnn"
        if not onednn_runs(self.convolution.weight):
            return "plain"
        return "product" if is_product(self.convolution, height * width) else "fused"

    def scratch(self, height: int, width: int) -> int:
        """Values an image that are held besides inputs and outputs, for outputs of a size."""
        form, strided = self.form(height, width), self.convolution.stride != (1, 1)
        copied = form == "product" or (form == "linear" and strided)
        return self.convolution.inner * height * width if copied else 0

    def __call__(self, x: Tensor | Paste, other: Tensor | Paste | None = None) -> Tensor:
        """relu(convolution(x) + bias + other), channels_last; differentiable for tensors."""
        dtype = self.convolution.weight.dtype
        if isinstance(x, Paste) or isinstance(other, Paste):
            if self._puts_together(x, other):
                return self._by_winograd(x, other)
            x = written(x, self.backend)
            other = None if other is None else written(other, self.backend)
        x, other = x.to(dtype), None if other is None else other.to(dtype)
        if torch.is_grad_enabled() and (x.requires_grad or getattr(other, "requires_grad", False)):
            y: Tensor = _Differentiable.apply(x, other, self)  # type: ignore[no-untyped-call]
            return y
        return self.forward(x, other)

    def forward(self, x: Tensor, other: Tensor | None) -> Tensor:
        """Compute the result from inputs of the weights' dtype."""
        c = self.convolution
        size = c.size(x.shape[2], x.shape[3])
        form = self.form(*size)
        if form == "winograd":
            return self._by_winograd(x, other)
        if self.linear is not None and other is None:
            return pixels(self.linear.forward(read(x, c.stride), self.linear.activation), x, size)
        if form == "linear":  # a product does not take in a sum
            form = "fused" if onednn_runs(c.weight) else "plain"
        if form == "fused":
            return self._fused(x, other)
        whole = cudnn.fused(x, c, other) if form == "cudnn" else None
        if whole is not None:
            return whole
        if form == "product":
            y = self._product(x, size)
        else:
            y = F.conv2d(x, c.weight, c.bias, c.stride, c.padding, c.dilation, c.groups)
        if other is not None:
            y += other
        return y.relu_() if c.relu else y

    def backward(self, grad: Tensor, x: Tensor) -> Tensor:
        """Gradient for an input like `x`, of which only the layout is read."""
        c = self.convolution
        flat = c.stride == (1, 1) and max(c.padding) <= 2
        if flat and self.form(*x.shape[2:]) == "winograd":
            # The gradient of a 3×3 convolution is one with the kernels turned around.
            weight = self._transformed(
                "gradient", lambda: c.weight.flip(2, 3).transpose(0, 1), (x.shape[2], x.shape[3])
            )
            padding = (2 - c.padding[0], 2 - c.padding[1])
            return winograd.convolve(grad, weight, x.shape[1], None, None, padding, False)
        if not grad.is_cpu or c.inner < WORTH_COPYING:  # elsewhere a look is a wait
            return self._input_gradient(grad, x)
        wanted = _not_zero(grad)
        if len(wanted) == len(grad):
            return self._input_gradient(grad, x)
        found = torch.zeros_like(x)
        found[wanted] = self._input_gradient(grad[wanted], x[: len(wanted)])
        return found

    def _input_gradient(self, grad: Tensor, x: Tensor) -> Tensor:
        c = self.convolution
        if self.linear is None:
            found: Tensor = torch.ops.aten.convolution_backward(
                grad, x, c.weight, None, c.stride, c.padding, c.dilation, False, (0, 0), c.groups,
                (True, False, False),
            )[0]  # fmt: skip
            return found
        product = pixels(self.linear.backward(read(grad, (1, 1))), grad, grad.shape[2:])
        if c.stride == (1, 1):
            return product
        found = torch.zeros_like(x)
        found[:, :, :: c.stride[0], :: c.stride[1]] = product
        return found

    def _puts_together(self, x: Tensor | Paste, other: Tensor | Paste | None) -> bool:
        """Whether the products read tiles that nobody has written out."""
        maps = [x] if other is None else [x, other]
        zeros = not isinstance(x, Paste) or x.pad == 0
        by_products = self.form(*self.convolution.size(x.shape[2], x.shape[3])) == "winograd"
        return zeros and by_products and {m.dtype for m in maps} == {self.convolution.weight.dtype}

    def _by_winograd(self, x: Tensor | Paste, other: Tensor | Paste | None) -> Tensor:
        c = self.convolution
        size = c.size(x.shape[2], x.shape[3])
        weight = self._transformed("winograd", lambda: c.weight, size)
        bias = None if c.bias is None else c.bias.float()
        return winograd.convolve(x, weight, len(c.weight), bias, other, c.padding, c.relu)

    def _transformed(self, key: str, weight: Callable[[], Tensor], size: Ints) -> Tensor:
        """Weights for Winograd's products of outputs of a size."""
        stride = self.convolution.stride[0]
        tile = winograd.tile_for(*size, stride)
        assert tile is not None
        return self._laid_out((key, tile), lambda: winograd.pack(weight().float(), tile, weight().dtype, stride))

    def _laid_out(self, key: Any, layout: Any) -> Tensor:
        if key not in self._weights:
            self._weights[key] = layout()
        return self._weights[key]

    def _product(self, x: Tensor, size: Ints) -> Tensor:
        """One matrix product over all outputs of all images: each weight is read once a batch."""
        c = self.convolution
        matrix = self._laid_out("product", lambda: c.weight.permute(2, 3, 1, 0).flatten(0, 2).contiguous())
        if any(c.padding):
            x = F.pad(x, (c.padding[1], c.padding[1], c.padding[0], c.padding[0]))
        pixels = x.permute(0, 2, 3, 1).contiguous()
        batch, rows, cols, channels = pixels.stride()
        read = pixels.as_strided(
            (len(x), *size, *c.weight.shape[2:], x.shape[1]),
            (batch, rows * c.stride[0], cols * c.stride[1],
             rows * c.dilation[0], cols * c.dilation[1], channels),
        ).reshape(-1, len(matrix))  # fmt: skip
        y = read @ matrix if c.bias is None else torch.addmm(c.bias, read, matrix)
        return y.view(len(x), *size, -1).permute(0, 3, 1, 2)

    def _fused(self, x: Tensor, other: Tensor | None) -> Tensor:
        """One call of oneDNN, whose layout of the weights goes by the size of the input."""
        c = self.convolution
        packed = self._laid_out((c.padding, x.shape[2:]), lambda: _packed(c, x.shape))
        return _onednn(x, packed, c, other)


class _Differentiable(torch.autograd.Function):
    """A layer whose weights are constants; of the results only the signs are needed again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, other: Tensor | None, layer: Layer) -> Tensor:
        y = layer.forward(x, other)
        ctx.layer, ctx.shape, ctx.added = layer, x.shape, other is not None
        ctx.save_for_backward(y if layer.convolution.relu else None)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (y,) = ctx.saved_tensors
        if y is not None:
            grad = torch.ops.aten.threshold_backward(grad, y, 0)
        like = torch.empty(ctx.shape, dtype=grad.dtype, device=grad.device, memory_format=LAYOUT)
        wanted = ctx.needs_input_grad[0]
        return ctx.layer.backward(grad, like) if wanted else None, grad if ctx.added else None, None


def written(x: Tensor | Paste, backend: str) -> Tensor:
    """Tiles as a tensor, channels_last; a tensor as it is."""
    if not isinstance(x, Paste):
        return x
    return ops.paste(
        x.clean, x.crops, x.image, x.row, x.col, x.rows, x.cols,
        height=x.height, width=x.width, pad=x.pad, backend=backend,
    )  # fmt: skip


def read(x: Tensor, stride: Ints) -> Tensor:
    """Every stride-th pixel of maps (B, C, H, W) as a row: (pixels, C)."""
    return x[:, :, :: stride[0], :: stride[1]].permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def pixels(rows: Tensor, like: Tensor, size: Sequence[int]) -> Tensor:
    """Maps (B, K, *size), channels_last, of rows (pixels, K) for as many images as in `like`."""
    return rows.view(len(like), *size, rows.shape[1]).permute(0, 3, 1, 2)


def _not_zero(grad: Tensor) -> Tensor:
    """Images that have a gradient."""
    return grad.permute(0, 2, 3, 1).flatten(1).any(1).nonzero()[:, 0]


def linear_of(convolution: Convolution) -> Linear | None:
    """A 1×1 convolution as a product; None for any other, or where oneDNN does not compute it.

    Measured on two cores of an AMD EPYC: with stride 2 1.1 to 1.7 times as fast as oneDNN's
    convolution, with stride 1 level or up to 1.3 times as fast.
    """
    c, weight = convolution, convolution.weight
    if tuple(weight.shape[2:]) != (1, 1) or tuple(c.padding) != (0, 0) or c.groups != 1:
        return None
    matrix = weight[:, :, 0, 0].t()
    if not linear.runs(matrix):
        return None
    return Linear(matrix, c.bias, RELU if c.relu else Activation())


def takes_winograd(convolution: Convolution, backend: str) -> bool:
    """Whether Winograd's products are faster, for outputs that they suit.

    Measured on two cores against oneDNN: with AVX-512 1.7 to 3 times as fast from 64 channels on,
    with the smaller tile alone 1.6 times from 32 on and level at 16; that tile with AVX2 is about
    as fast as oneDNN with AVX-512. In bfloat16 they need its AVX-512 instructions, and AMX is
    faster without them.
    """
    weight = convolution.weight
    return (
        tuple(weight.shape[2:]) == (3, 3)
        and tuple(convolution.stride) in ((1, 1), (2, 2))
        and tuple(convolution.dilation) == (1, 1)
        and convolution.groups == 1
        and min(weight.shape[:2]) >= LEAST_CHANNELS
        and weight.is_cpu
        and choose(backend, weight) is native
        and (weight.dtype == torch.float32 or _winograd_in(weight.dtype))
    )


def _winograd_in(dtype: torch.dtype) -> bool:
    return dtype == torch.bfloat16 and native.winograd_in_bfloat16() and not has_amx()


def is_product(convolution: Convolution, pixels: int) -> bool:
    """Whether a convolution on a CPU is faster as one matrix product, for outputs of `pixels`.

    oneDNN reads the weights again for every image: measured in float32 200 GFLOP/s for 512
    channels on 4×4, 310 as a product; from 7×7 on they are level.
    """
    one_group = convolution.groups == 1 and convolution.weight.dtype == torch.float32
    return one_group and pixels <= 25 and convolution.inner >= 1024


def onednn_runs(weight: Tensor) -> bool:
    """Whether oneDNN's fused convolutions are there for a tensor."""
    known = weight.is_cpu and weight.dtype in (torch.float32, torch.bfloat16)
    return known and onednn_enabled() and _onednn_agrees(weight.dtype)


@cache
def _onednn_agrees(dtype: torch.dtype) -> bool:
    """Try the fused convolutions once: PyTorch keeps them private and may change them."""
    weight = torch.linspace(-1, 1, 72, dtype=dtype).view(2, 4, 3, 3)
    x = torch.linspace(-1, 1, 100, dtype=dtype).view(1, 4, 5, 5).contiguous(memory_format=LAYOUT)
    c = Convolution(weight, weight[0, 0, 0, :2], (2, 1), (1, 0), (1, 1), 1, relu=True)
    y = F.conv2d(x, c.weight, c.bias, c.stride, c.padding)
    tolerance = 64 * torch.finfo(dtype).eps
    try:
        packed = _packed(c, x.shape)
        found = [_onednn(x, packed, c, other) for other in (None, torch.ones_like(y))]
    except Exception:  # whatever has changed, PyTorch's own convolution is there
        return False
    pairs = zip(found, (y.relu(), (y + 1).relu()), strict=True)
    return all(torch.allclose(a, b, tolerance, tolerance) for a, b in pairs)


def _packed(c: Convolution, shape: torch.Size) -> Tensor:
    """The weights as oneDNN wants them for inputs of a shape, an opaque tensor."""
    packed: Tensor = torch.ops.mkldnn._reorder_convolution_weight(
        c.weight, c.padding, c.stride, c.dilation, c.groups, list(shape)
    )
    return packed


def _onednn(x: Tensor, packed: Tensor, c: Convolution, other: Tensor | None) -> Tensor:
    """relu(convolution(x) + bias + other) in one pass."""
    shape: tuple[Any, ...] = (c.padding, c.stride, c.dilation, c.groups)
    unary = "relu" if c.relu else None
    run = torch.ops.mkldnn._convolution_pointwise
    if other is None:
        y: Tensor = run(x, packed, c.bias, *shape, unary or "none", [], "")
        return y
    other = other.contiguous(memory_format=LAYOUT)
    y = run.binary(x, other, packed, c.bias, *shape, "add", 1.0, unary, [], "")
    return y
