"""What is known of ATen's operations: which compute an output from a rectangle of their inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .convolution import BatchNorm, Convolution
from .leaves import leaves, mapped
from .linear import RELU, Activation
from .network import POINT, Axes, Shape, elements_of, map_shape
from .reach import Reach
from .trace import BatchConstant, Graph, Node, PerImage, Value

aten = torch.ops.aten

UNARY = frozenset(
    (
        *("abs", "alias", "celu", "clamp", "clamp_max", "clamp_min", "clone", "cos", "detach"),
        *("elu", "erf", "exp", "gelu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu"),
        *("lift_fresh", "log", "log1p", "mish", "neg", "pow", "reciprocal", "relu", "relu6"),
        *("round", "rsqrt", "selu", "sigmoid", "sign", "silu", "sin", "softplus", "sqrt"),
        *("square", "tan", "tanh", "threshold"),
    )
)
BINARY = frozenset(("add", "sub", "mul", "div", "maximum", "minimum", "rsub", "_prelu_kernel"))
LAYOUT = frozenset(
    (
        *("view", "_unsafe_view", "reshape", "permute", "transpose", "t", "squeeze", "unsqueeze"),
        *("expand", "slice", "select", "split", "split_with_sizes", "cat", "stack", "clone"),
        *("alias", "detach", "flatten", "unbind"),
    )
)
FUSED_ATTENTION = "scaled_dot_product_attention"
PRODUCTS = frozenset(("addmm", "mm", "bmm", "baddbmm", "convolution", FUSED_ATTENTION))
VIEWS = frozenset(("view", "_unsafe_view", "reshape"))
RELAXED: dict[Any, Any] = {  # results need not be views: layouts are ours
    aten.view.default: aten.reshape.default,
    aten._unsafe_view.default: aten.reshape.default,
}

ShapeOf = Callable[[Value], Shape | None]


@dataclass(frozen=True)
class TiledOperation:
    """An operation that works on tiles.

    Attributes
    ----------
    sources
        The values that it reads; the first may be read beyond its border.
    run, tile
        The operation on whole maps and on tiles, each followed by the `constants`' part.
    reaches
        Reach into each source.
    pad
        Value beyond the first source's border.
    work
        Floating-point operations an image.
    constants
        Maps (1, C, H, W) of the output's height and width, read at the output's own position.
    """

    sources: tuple[Value, ...]
    run: Callable[..., Tensor]
    tile: Callable[..., Tensor]
    reaches: tuple[Axes, ...]
    pad: float = 0.0
    work: float = 0.0
    constants: tuple[Tensor, ...] = ()


def known(node: Node, output: int, shape_of: ShapeOf) -> TiledOperation | None:
    """What is known of one output of a node; None where it takes whole maps."""
    if map_shape(node, output) is None or any(isinstance(leaf, (PerImage, BatchConstant)) for leaf in node.leaves()):
        return None
    if node.name in ("split", "split_with_sizes"):
        return _split(node, output, shape_of)
    handler = _HANDLERS.get(node.name)
    if handler is None and node.name in UNARY | BINARY:
        handler = _pointwise
    return None if handler is None or output else handler(node, shape_of)


def axes_of(kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]) -> Axes:
    """Reach on rows and columns."""
    rows, cols = (Reach(k, s, p, d) for k, s, p, d in zip(kernel, stride, padding, dilation, strict=True))
    return rows, cols


def product_work(node: Node, graph: Graph) -> float:
    """Floating-point operations an image of matrix products; 0 for anything else."""
    if node.name == FUSED_ATTENTION:
        keys = graph.shape(node.arguments["key"])[-2]
        return 4.0 * elements_of(node) * (keys.count if isinstance(keys, PerImage) else keys)
    if node.name not in ("addmm", "mm", "bmm", "baddbmm"):
        return 0.0
    product = product_of(node)
    return 2.0 * elements_of(node) * (1 if product is None else len(product.matrix))


@dataclass(frozen=True)
class Product:
    """source @ matrix + bias.

    Attributes
    ----------
    source
        (rows, inputs), or (B, rows, inputs).
    matrix, bias
        (inputs, outputs) and (outputs,) or None.
    """

    source: Value
    matrix: Tensor
    bias: Tensor | None


def product_of(node: Node) -> Product | None:
    """The product with a constant matrix, and the constant sum, that a node is."""
    if node.name == "bmm":  # what a linear layer is for tokens that are not dense
        source, matrix = node.args
        alike = isinstance(source, Value) and isinstance(matrix, BatchConstant) and len(matrix.rows) == 1
        return Product(source, matrix.rows[0], None) if alike else None
    if node.name not in ("addmm", "mm"):
        return None
    a = node.arguments
    source, matrix = (a["mat1"], a["mat2"]) if node.name == "addmm" else (a["self"], a["mat2"])
    bias = a["self"] if node.name == "addmm" else None
    constant = isinstance(matrix, Tensor) and (bias is None or isinstance(bias, Tensor))
    scaled = a.get("alpha", 1) != 1 or a.get("beta", 1) != 1
    if not constant or scaled or not isinstance(source, Value):
        return None
    if bias is not None and bias.shape != matrix.shape[1:]:
        return None
    return Product(source, matrix, bias)


def activation_of(node: Node) -> Activation | None:
    """The activation that a node is, of those that a product may take in."""
    if node.name == "relu":
        return RELU
    return Activation("gelu", node.arguments["approximate"]) if node.name == "gelu" else None


# Convolutions and what goes into them


def convolution_of(node: Node) -> Convolution | None:
    """The two-dimensional convolution with constant weights that a node is."""
    if node.name != "convolution":
        return None
    a = node.arguments
    weight, bias = a["weight"], a["bias"]
    constant = isinstance(weight, Tensor) and (bias is None or isinstance(bias, Tensor))
    if a["transposed"] or not constant or weight.ndim != 4:
        return None
    return Convolution(weight, bias, _pair(a["stride"]), _pair(a["padding"]), _pair(a["dilation"]), a["groups"])


@dataclass(frozen=True)
class Affine:
    """source·scale + shift, (C,) each in double."""

    source: Value
    scale: Tensor
    shift: Tensor


def channel_affine(node: Node) -> Affine | None:
    """The map of each channel by a constant scale and shift that a node is."""
    norm = _norm_of(node)
    if norm is not None:
        return Affine(node.args[0], *norm.affine())
    shape = map_shape(node)
    if shape is None or node.name not in ("add", "sub", "mul", "div"):
        return None
    source, other = node.args[:2]
    if node.kwargs or len(node.args) > 2 or not isinstance(source, Value):
        return None
    value = _per_channel(other, shape[0])
    if value is None:
        return None
    one, zero = torch.ones_like(value), torch.zeros_like(value)
    if node.name in ("mul", "div"):
        return Affine(source, value if node.name == "mul" else 1 / value, zero)
    return Affine(source, one, value if node.name == "add" else -value)


def _per_channel(value: Any, channels: int) -> Tensor | None:
    """A constant that has one value a channel, or one for all, as (C,) in double."""
    if isinstance(value, (int, float)):
        return torch.full((channels,), float(value), dtype=torch.float64)
    if not isinstance(value, Tensor) or value.numel() not in (1, channels):
        return None
    if value.numel() > 1 and (value.ndim < 3 or value.shape[-3] != channels):
        return None
    return value.double().flatten().expand(channels)


def _norm_of(node: Node) -> BatchNorm | None:
    """The eval-mode batch norm that a node is."""
    if node.name not in ("native_batch_norm", "_native_batch_norm_legit_no_training"):
        return None
    a = node.arguments
    weight, bias, mean, var = (a[name] for name in ("weight", "bias", "running_mean", "running_var"))
    optional = all(t is None or isinstance(t, Tensor) for t in (weight, bias))
    if a.get("training") or not (optional and isinstance(mean, Tensor) and isinstance(var, Tensor)):
        return None
    return BatchNorm(weight, bias, mean, var, a["eps"])


def _batch_norm(node: Node, shape_of: ShapeOf) -> TiledOperation | None:
    norm, shape = _norm_of(node), shape_of(node.args[0])
    if norm is None or shape is None:
        return None
    return TiledOperation((node.args[0],), norm, norm, (POINT,), work=_elements(shape))


# Pooling


def _max_pool(node: Node, shape_of: ShapeOf) -> TiledOperation | None:
    a, shape = node.arguments, map_shape(node)
    k = _pair(a["kernel_size"])
    s, p, d = _pair(a["stride"] or k), _pair(a["padding"]), _pair(a["dilation"])
    ceil = a["ceil_mode"]
    return TiledOperation(
        (a["self"],),
        lambda x: F.max_pool2d(x, k, s, p, d, ceil),
        lambda x: F.max_pool2d(x, k, s, 0, d),
        (axes_of(k, s, p, d),), pad=-torch.inf, work=_elements(shape) * k[0] * k[1],
    )  # fmt: skip


def _avg_pool(node: Node, shape_of: ShapeOf) -> TiledOperation | None:
    a, shape = node.arguments, shape_of(node.args[0])
    if shape is None:
        return None
    k = _pair(a["kernel_size"])
    s, p = _pair(a["stride"] or k), _pair(a["padding"])

    def pool(x: Tensor, divisor: int | None) -> Tensor:
        return F.avg_pool2d(x, k, s, p, a["ceil_mode"], a["count_include_pad"], divisor)

    # At the border the divisor depends on the position: sum, then divide.
    ones = torch.ones(1, 1, *shape[1:], dtype=torch.float64)
    share = pool(ones, a["divisor_override"]) / pool(ones, 1)
    reach, work = axes_of(k, s, p, (1, 1)), _elements(map_shape(node)) * k[0] * k[1]
    if bool((share == share[0, 0, 0, 0]).all()):
        divisor = round(1 / float(share[0, 0, 0, 0]))
        return TiledOperation(
            (a["self"],), lambda x: pool(x, a["divisor_override"]),
            lambda x: F.avg_pool2d(x, k, s, divisor_override=divisor), (reach,), work=work,
        )  # fmt: skip
    return TiledOperation(
        (a["self"],), lambda x, part: pool(x, a["divisor_override"]),
        lambda x, part: (F.avg_pool2d(x, k, s, divisor_override=1) * part).to(x.dtype), (reach,),
        work=work, constants=(share.to(torch.promote_types(node.dtypes[0], torch.float32)),),
    )  # fmt: skip


def _adaptive(pool: Callable[..., Tensor]) -> Callable[[Node, ShapeOf], TiledOperation | None]:
    def handler(node: Node, shape_of: ShapeOf) -> TiledOperation | None:
        """An adaptive pooling into equal parts is one with a fixed kernel."""
        before, after = shape_of(node.args[0]), map_shape(node)
        if before is None or after is None or before[1] % after[1] or before[2] % after[2]:
            return None
        k = (before[1] // after[1], before[2] // after[2])

        def run(x: Tensor) -> Tensor:
            return pool(x, k, k)

        pad = -torch.inf if pool is F.max_pool2d else 0.0
        reach = axes_of(k, k, (0, 0), (1, 1))
        return TiledOperation((node.args[0],), run, run, (reach,), pad=pad, work=_elements(before))

    return handler


# Crops and borders


def _constant_pad(node: Node, shape_of: ShapeOf) -> TiledOperation | None:
    """Padding with a constant: on tiles the border is there already, but for channels."""
    a = node.arguments
    left, right, top, bottom, *channels = (*a["pad"], 0, 0, 0, 0)[: max(4, len(a["pad"]))]
    value = float(a["value"])
    if len(channels) > 2 or (any(channels[:2]) and channels[:2] != channels):
        return None
    more = [0, 0, 0, 0, *channels]

    def tile(x: Tensor) -> Tensor:
        return F.pad(x, more, value=value) if any(channels) else x

    def run(x: Tensor) -> Tensor:
        return F.pad(x, [left, right, top, bottom, *channels], value=value)

    reach = axes_of((1, 1), (1, 1), (top, left), (1, 1))
    return TiledOperation((a["self"],), run, tile, (reach,), pad=value)


def _slice(node: Node, shape_of: ShapeOf) -> TiledOperation | None:
    """Every step-th row or column, or a range of channels."""
    a, shape = node.arguments, shape_of(node.args[0])
    if shape is None or a["dim"] not in (1, 2, 3):
        return None
    start, step, dim = a["start"] or 0, a["step"], a["dim"]
    start = max(0, start + shape[dim - 1]) if start < 0 else start

    def run(x: Tensor) -> Tensor:
        part: Tensor = node.op(x, *node.args[1:])
        return part

    if dim == 1:
        return TiledOperation((a["self"],), run, run, (POINT,))
    moved = Reach(1, step, -start)
    reach = (moved, Reach()) if dim == 2 else (Reach(), moved)
    return TiledOperation((a["self"],), run, lambda x: aten.slice(x, dim, 0, None, step), (reach,))


def _split(node: Node, output: int, shape_of: ShapeOf) -> TiledOperation | None:
    a = node.arguments
    if a["dim"] != 1 or shape_of(a["self"]) is None:
        return None

    def run(x: Tensor) -> Tensor:
        part: Tensor = node.op(x, *node.args[1:], **node.kwargs)[output]
        return part

    return TiledOperation((a["self"],), run, run, (POINT,))


# Position by position


def _softmax(node: Node, shape_of: ShapeOf) -> TiledOperation | None:
    return _pointwise(node, shape_of) if node.args[1] in (1, -3) else None


def _cat(node: Node, shape_of: ShapeOf) -> TiledOperation | None:
    return _pointwise(node, shape_of) if node.arguments["dim"] in (1, -3) else None


def _pointwise(node: Node, shape_of: ShapeOf) -> TiledOperation | None:
    """An operation on maps of one size, numbers and constants, each position on its own."""
    shape = map_shape(node)
    values = tuple(dict.fromkeys(node.inputs()))
    shapes = [shape_of(value) for value in values]
    if shape is None or not values or any(s is None or s[1:] != shape[1:] for s in shapes):
        return None
    tensors = [leaf for leaf in leaves((node.args, node.kwargs)) if isinstance(leaf, Tensor)]
    maps = []
    for tensor in tensors:
        if tensor.ndim > 4 or (tensor.ndim == 4 and len(tensor) != 1):
            return None
        if tensor.ndim and any(n != 1 for n in tensor.shape[-2:]):
            whole = tensor.reshape((1,) * (4 - tensor.ndim) + tuple(tensor.shape))
            maps.append((tensor, whole.expand(1, whole.shape[1], *shape[1:])))

    def run(*arguments: Tensor) -> Tensor:
        found = dict(zip((*values, *(id(t) for t, _ in maps)), arguments, strict=True))
        dtype = arguments[0].dtype

        def argument(leaf: Any) -> Any:
            if isinstance(leaf, Value):
                return found[leaf]
            return found.get(id(leaf), leaf) if isinstance(leaf, Tensor) else leaf

        args, kwargs = mapped(argument, (node.args, node.kwargs))
        result: Tensor = node.op(*args, **kwargs)
        return result.to(dtype)

    return TiledOperation(
        values, run, run, (POINT,) * len(values), work=_elements(shape),
        constants=tuple(whole for _, whole in maps),
    )  # fmt: skip


def _pair(value: Any) -> tuple[int, int]:
    """(rows, columns) of an int or a list of one or two."""
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def _elements(shape: Shape | None) -> float:
    return 0.0 if shape is None else float(shape[0] * shape[1] * shape[2])


_HANDLERS: dict[str, Callable[[Node, ShapeOf], TiledOperation | None]] = {
    "native_batch_norm": _batch_norm,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "max_pool2d_with_indices": _max_pool,
    "max_pool2d": _max_pool,
    "avg_pool2d": _avg_pool,
    "_adaptive_avg_pool2d": _adaptive(F.avg_pool2d),
    "adaptive_max_pool2d": _adaptive(F.max_pool2d),
    "constant_pad_nd": _constant_pad,
    "slice": _slice,
    "_softmax": _softmax,
    "cat": _cat,
}
