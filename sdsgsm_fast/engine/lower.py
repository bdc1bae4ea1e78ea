"""From a trace to steps: batch norms, sums and ReLUs go into the convolutions before them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from . import linear, winograd
from .attention import attention
from .convolution import Convolution
from .layer import Layer
from .leaves import mapped
from .linear import Activation, Linear
from .narrow import narrowed
from .network import POINT, Network, Shape, Step, channels_last, elements_of, map_shape
from .operations import (
    FUSED_ATTENTION,
    LAYOUT,
    PRODUCTS,
    RELAXED,
    VIEWS,
    TiledOperation,
    activation_of,
    axes_of,
    channel_affine,
    convolution_of,
    known,
    product_of,
    product_work,
)
from .trace import BatchConstant, Graph, Node, PerImage, Value


def lower(graph: Graph, dtype: torch.dtype, device: torch.device, backend: str) -> Network:
    """Turn a trace into steps.

    Parameters
    ----------
    graph
        Of a model in its own precision.
    device
        Where the model is.
    dtype
        Of convolutions and products: the model's own, or bfloat16. Then sensitive operations and
        the last product stay in float32, as under autocast.
    backend
        Whose kernels may compute a convolution, as in `occlusion_scores`.
    """
    return _Lowering(narrowed(graph), dtype, device, backend).network()


@dataclass
class _OpenConvolution:
    """A convolution that may still take in what follows it."""

    convolution: Convolution
    node: Node
    source: int
    other: int | None = None
    place: int | None = None  # once it is a step


class _Lowering:
    """The steps so far, and where each of the trace's values is."""

    def __init__(self, graph: Graph, dtype: torch.dtype, device: torch.device, backend: str) -> None:
        self.graph, self.dtype, self.device, self.backend = graph, dtype, device, backend
        self.reduced = dtype != graph.nodes[0].dtypes[0]  # bfloat16 for a wider model
        self.steps: list[Step] = []
        self.found: dict[Value, int | _OpenConvolution] = {}
        self.readers: dict[Value, int] = {graph.output: 1}
        self.reader: dict[Value, int] = {}  # the last one
        self.taken_in: set[int] = set()  # activations that are part of a product
        for k, node in enumerate(graph.nodes):
            for value in node.inputs():
                self.readers[value] = self.readers.get(value, 0) + 1
                self.reader[value] = k

    def network(self) -> Network:
        """Lower node after node."""
        for k, node in enumerate(self.graph.nodes):
            if node.op is None:
                self.found[Value(k)] = self.add(
                    Step(
                        "input",
                        (),
                        lambda count, x: x,
                        shape=map_shape(node),
                        elements=elements_of(node),
                    )
                )
            elif k in self.taken_in:
                self.found[Value(k)] = self.place_of(node.args[0])
            elif not (
                self.uniform(node) and (self.absorb(k, node) or self.recognise(k, node) or self.multiply(k, node))
            ):
                self.opaque(k, node)
        return Network(self.steps, self.place_of(self.graph.output), self.dtype)

    def uniform(self, node: Node) -> bool:
        """Whether a node reads and makes nothing but maps of the input's own dtype."""
        nodes = self.graph.nodes
        read = {nodes[value.node].dtypes[value.output] for value in node.inputs()}
        return read | {node.dtypes[0]} == {nodes[0].dtypes[0]}

    def add(self, step: Step) -> int:
        """Append a step; returns its place."""
        self.steps.append(step)
        return len(self.steps) - 1

    def place_of(self, value: Value) -> int:
        """Place of a value; a convolution that was pending takes in nothing more."""
        found = self.found[value]
        if not isinstance(found, _OpenConvolution):
            return found
        if found.place is None:
            found.place = self.convolve(found)
        return found.place

    # Convolutions

    def absorb(self, k: int, node: Node) -> bool:
        """Start a convolution, or fold a node into a pending one."""
        if map_shape(node) is None or any(Value(k, i) in self.readers for i in (1, 2)):
            return False
        pending = self.sum(node) if node.name == "add" else None
        convolution = convolution_of(node)
        if convolution is not None:
            source = self.place_of(node.arguments["input"])
            pending = _OpenConvolution(convolution, node, source)
        if pending is None:
            pending = self.chain(node)
        if pending is None:
            return False
        self.found[Value(k)] = pending
        return True

    def open(self, value: Any) -> _OpenConvolution | None:
        """The pending convolution behind a value that nobody else reads."""
        found = self.found.get(value) if isinstance(value, Value) else None
        if not isinstance(found, _OpenConvolution) or found.place is not None or found.convolution.relu:
            return None
        return found if self.readers[value] == 1 else None

    def chain(self, node: Node) -> _OpenConvolution | None:
        """The pending convolution with a ReLU, batch norm or other affine map folded in."""
        affine = channel_affine(node)
        source = node.args[0] if affine is None else affine.source
        pending = self.open(source) if node.name == "relu" or affine is not None else None
        if pending is None or node.shapes[0] != pending.node.shapes[0]:
            return None
        if affine is not None and pending.other is not None:
            return None
        if affine is None:
            pending.convolution = replace(pending.convolution, relu=True)
        else:
            pending.convolution = pending.convolution.scaled(affine.scale, affine.shift)
        return pending

    def sum(self, node: Node) -> _OpenConvolution | None:
        """A pending convolution with another map of its shape added."""
        summands = (node.arguments["self"], node.arguments["other"])
        if node.arguments["alpha"] != 1 or summands[0] == summands[1]:
            return None
        for mine, other in (summands, summands[::-1]):
            pending = self.open(mine)
            if pending is None or pending.other is not None or not isinstance(other, Value):
                continue
            same = node.shapes[0] == pending.node.shapes[0]
            if same and self.graph.shape(other) == node.shapes[0]:
                pending.other = self.place_of(other)
                return pending
        return None

    def convolve(self, pending: _OpenConvolution) -> int:
        """Append a convolution."""
        layer = pending.convolution.in_dtype(self.dtype)
        shape = map_shape(pending.node)
        assert shape is not None
        reach = axes_of(layer.weight.shape[2:], layer.stride, layer.padding, layer.dilation)
        whole = Layer(layer, self.backend)
        share = winograd.share(*shape[1:], layer.stride[0]) if whole.winograd else 1.0
        work = 2.0 * layer.inner * math.prod(shape) * share
        inputs = (pending.source,) if pending.other is None else (pending.source, pending.other)
        step = Step(
            "convolution", inputs, _counted(whole), whole.on_tiles(),
            (reach, POINT)[: len(inputs)], shape=shape,
            work=work, elements=math.prod(shape),
        )  # fmt: skip
        return self.add(step)

    # Everything else

    def recognise(self, k: int, node: Node) -> bool:
        """Append an operation that is known to work on tiles, for each of its results."""
        wanted = [i for i in range(len(node.shapes)) if Value(k, i) in self.readers]
        found = [known(node, i, self.shape_of) for i in wanted]
        for i, operation in zip(wanted, found, strict=True):
            if operation is None or None in found:
                return False
            self.found[Value(k, i)] = self.add(self.step_of(node, i, operation))
        return True

    def shape_of(self, value: Value) -> Shape | None:
        """(C, H, W) of a value that is a map."""
        return map_shape(self.graph.nodes[value.node], value.output)

    def step_of(self, node: Node, output: int, operation: TiledOperation) -> Step:
        """A known operation as a step; its constants become steps of their own."""
        inputs = [self.place_of(value) for value in operation.sources]
        for constant in operation.constants:
            value = channels_last(constant.to(self.device))
            shape = (value.shape[1], value.shape[2], value.shape[3])
            inputs.append(self.add(Step("constant", (), _always(value), shape=shape, constant=value)))
        return Step(
            node.name, tuple(inputs), _counted(operation.run), operation.tile,
            operation.reaches + (POINT,) * len(operation.constants), pad=operation.pad,
            shape=map_shape(node, output), work=operation.work,
            elements=elements_of(node, output),
        )  # fmt: skip

    def multiply(self, k: int, node: Node) -> bool:
        """Append a product with a constant matrix, where oneDNN computes it."""
        product = product_of(node)
        if product is None:
            return False
        dtype = self.floating_dtype(k, node) or node.dtypes[0]
        matrix = product.matrix.to(dtype)
        if not linear.runs(matrix):
            return False
        bias = None if product.bias is None else product.bias.to(dtype).contiguous()
        activation = self.activation_after(k)
        run = _counted(Linear(matrix, bias, activation))
        step = Step(
            node.name, (self.place_of(product.source),), run,
            work=product_work(node, self.graph), elements=elements_of(node),
        )  # fmt: skip
        self.found[Value(k)] = self.add(step)
        return True

    def activation_after(self, k: int) -> Activation:
        """The activation that alone reads a product's result, which takes it in."""
        at = k
        while self.readers.get(Value(at)) == 1 and Value(at) in self.reader:
            at = self.reader[Value(at)]
            node = self.graph.nodes[at]
            activation = activation_of(node)
            if activation is not None:
                self.taken_in.add(at)
                return activation
            if node.name not in VIEWS:
                break
        return Activation()

    def opaque(self, k: int, node: Node) -> None:
        """Append an operation on whole maps."""
        values = list(dict.fromkeys(node.inputs()))
        inputs = tuple(self.place_of(value) for value in values)
        dtype = self.floating_dtype(k, node)
        call = RELAXED.get(node.op, node.op)
        if node.name == FUSED_ATTENTION:
            call = attention

        def converted(leaf: Any) -> Any:
            if isinstance(leaf, BatchConstant):
                return BatchConstant(converted(leaf.rows))
            floating = isinstance(leaf, Tensor) and leaf.is_floating_point()
            return leaf.to(dtype) if floating and dtype is not None else leaf

        fixed = mapped(converted, (node.args, node.kwargs))

        def run(count: int, *results: Any) -> Any:
            known = dict(zip(values, results, strict=True))

            def argument(leaf: Any) -> Any:
                if isinstance(leaf, Value):
                    return converted(known[leaf])
                if isinstance(leaf, BatchConstant):
                    return leaf.of(count)
                return leaf.count * count if isinstance(leaf, PerImage) else leaf

            args, kwargs = mapped(argument, fixed)
            return call(*args, **kwargs)

        shape = None if node.lists else map_shape(node)
        whole = self.add(
            Step(node.name, inputs, run, shape=shape, work=product_work(node, self.graph),
                 elements=elements_of(node))
        )  # fmt: skip
        self.found[Value(k)] = whole
        if node.lists:
            for i in range(len(node.shapes)):
                if Value(k, i) in self.readers:
                    self.found[Value(k, i)] = self.add(_item(node, whole, i))

    def floating_dtype(self, k: int, node: Node) -> torch.dtype | None:
        """Dtype that an opaque operation's floating inputs are brought to; None leaves them."""
        if not self.reduced or node.name in LAYOUT:
            return None
        product = node.name in PRODUCTS and not self.makes_logits(k)
        return self.dtype if product else torch.float32

    def makes_logits(self, k: int) -> bool:
        """Whether the logits are this node's result, but for their layout."""
        at = self.graph.output.node
        while at != k and self.graph.nodes[at].name in LAYOUT:
            at = self.graph.nodes[at].inputs()[0].node
        return at == k


def _item(node: Node, whole: int, i: int) -> Step:
    """One of the results of an opaque operation."""
    return Step(node.name, (whole,), lambda count, out: out[i], shape=map_shape(node, i))


def _always(value: Tensor) -> Callable[..., Tensor]:
    return lambda count: value


def _counted(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Take the number of images, which the operation does not need."""
    return lambda count, *maps: run(*maps)
