"""Where one token alone is read, what leads to it is computed for that token alone.

Vision transformers read the class token of their last block: all that follows its attention, and
the attention's queries, need no other. What a reader wants is carried backwards from `x[:, index]`
through operations that treat tokens one by one, as far as nobody else wants more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .leaves import mapped
from .operations import BINARY, FUSED_ATTENTION, UNARY, VIEWS, product_of
from .trace import BatchConstant, Graph, Node, PerImage, Value

aten = torch.ops.aten
Size = int | PerImage
ONE = PerImage(1)
POINTWISE = UNARY | BINARY


@dataclass(frozen=True)
class Part:
    """One token of a value.

    Attributes
    ----------
    index, length
        Which one of how many.
    dim
        The dimension that they are on; 0 where images and tokens share it, image by image.
    """

    index: int
    length: int
    dim: int

    def of(self, shape: tuple[Size, ...]) -> tuple[Size, ...]:
        """The shape that remains of a value's."""
        return (*shape[: self.dim], 1 if self.dim else ONE, *shape[self.dim + 1 :])


Wanted = dict[Value, Part | None]
"""What is wanted of the inputs of a node; None for all of one."""


def narrowed(graph: Graph) -> Graph:
    """The graph without the tokens that nobody reads."""
    parts = _parts(graph)
    return _Narrowing(graph, parts).graph() if parts else graph


def _parts(graph: Graph) -> dict[int, Part]:
    """Nodes of whose result one token is all that is wanted."""
    wanted: dict[Value, set[Part | None]] = {graph.output: {None}}
    found: dict[int, Part] = {}
    for k in reversed(range(len(graph.nodes))):
        node = graph.nodes[k]
        outputs = [wanted.get(Value(k, i), set()) for i in range(len(node.shapes))]
        only = outputs[0] if not any(outputs[1:]) and len(outputs[0]) == 1 else {None}
        (part,) = only
        inputs = None if part is None else _through(graph, node, part)
        if part is not None and inputs is not None:
            found[k] = part
        else:
            inputs = _selected(graph, node) or dict.fromkeys(node.inputs())
        for value, needed in inputs.items():
            wanted.setdefault(value, set()).add(needed)
    return found


def _selected(graph: Graph, node: Node) -> Wanted | None:
    """What ``x[:, index]`` wants of tokens (B, tokens, width)."""
    if node.name != "select" or not isinstance(node.args[0], Value):
        return None
    a = node.arguments
    shape = graph.shape(a["self"])
    if len(shape) != 3 or a["dim"] not in (1, -2) or not isinstance(shape[1], int):
        return None
    return {a["self"]: Part(a["index"] % shape[1], shape[1], 1)}


# What an operation wants of its inputs, given what is wanted of it; None where that is not known


def _through(graph: Graph, node: Node, part: Part) -> Wanted | None:
    if node.name in POINTWISE:
        return _pointwise(graph, node, part)
    known = {
        "native_layer_norm": _layer_norm, "addmm": _product, "mm": _product, "bmm": _product,
        "transpose": _moved, "permute": _moved, FUSED_ATTENTION: _attention,
    } | dict.fromkeys(VIEWS, _view)  # fmt: skip
    handler = known.get(node.name)
    wanted = None if handler is None else handler(graph, node, part)
    if wanted is None or not all(isinstance(value, Value) for value in wanted):
        return None
    return wanted


def _pointwise(graph: Graph, node: Node, part: Part) -> Wanted | None:
    shape = node.shapes[0]
    if any(graph.shape(value) != shape for value in node.inputs()):
        return None
    if any(isinstance(leaf, BatchConstant) for leaf in node.leaves()):
        return None
    constants = [leaf for leaf in node.leaves() if isinstance(leaf, Tensor)]
    if part.dim == 0 and any(len(shape) - t.ndim <= 0 and len(t) > 1 for t in constants):
        return None
    return dict.fromkeys(node.inputs(), part)


def _layer_norm(graph: Graph, node: Node, part: Part) -> Wanted | None:
    apart = len(node.shapes[0]) - len(node.arguments["normalized_shape"])
    return {node.args[0]: part} if part.dim < apart else None


def _product(graph: Graph, node: Node, part: Part) -> Wanted | None:
    product = product_of(node)
    rows = 1 if node.name == "bmm" else 0
    return {product.source: part} if product is not None and part.dim == rows else None


def _moved(graph: Graph, node: Node, part: Part) -> Wanted | None:
    size, a = len(node.shapes[0]), node.arguments
    order = list(range(size))
    if node.name == "permute":
        order = [dim % size for dim in a["dims"]]
    else:
        one, other = a["dim0"] % size, a["dim1"] % size
        order[one], order[other] = other, one
    dim = order[part.dim]
    return {a["self"]: replace(part, dim=dim)} if part.dim and dim else None


def _view(graph: Graph, node: Node, part: Part) -> Wanted | None:
    value, after = node.args[0], node.shapes[0]
    before = graph.shape(value)
    tokens = (ONE, part.length)
    if part.dim == 0:  # (B, tokens, …) to (B·tokens, …)
        joined = before[:2] == tokens and before[2:] == after[1:]
        return {value: replace(part, dim=1)} if joined else None
    if part.dim == 1 and after[:2] == tokens and before == (PerImage(part.length), *after[2:]):
        return {value: replace(part, dim=0)}
    same = before[: part.dim + 1] == after[: part.dim + 1]
    return {value: part} if same else None


def _attention(graph: Graph, node: Node, part: Part) -> Wanted | None:
    a, shape = node.arguments, node.shapes[0]
    query, others = a["query"], [a[name] for name in ("key", "value") if isinstance(a[name], Value)]
    if not isinstance(query, Value) or query in others or a["attn_mask"] is not None:
        return None
    apart = part.dim == len(shape) - 2 and graph.shape(query)[:-1] == shape[:-1]
    if not apart or a["is_causal"]:
        return None
    return {query: part, **dict.fromkeys(others)}


class _Narrowing:
    """The new graph as it grows: where the old values are in it, whole or in part."""

    def __init__(self, graph: Graph, parts: dict[int, Part]) -> None:
        self.old, self.parts = graph, parts
        self.nodes: list[Node] = []
        self.place: dict[Value, Value] = {}

    def graph(self) -> Graph:
        """Copy node after node."""
        for k, node in enumerate(self.old.nodes):
            new = self.append(self.part(k, node) if k in self.parts else self.whole(node))
            for i in range(len(node.shapes)):
                self.place[Value(k, i)] = Value(new.node, i)
        return Graph(self.nodes, self.place[self.old.output])

    def append(self, node: Node) -> Value:
        """Add a node; returns its first output."""
        self.nodes.append(node)
        return Value(len(self.nodes) - 1)

    def whole(self, node: Node) -> Node:
        """A node as it was; one that selects a token finds it alone."""
        alone = node.name == "select" and any(v.node in self.parts for v in node.inputs())
        args, kwargs = mapped(
            lambda leaf: self.place[leaf] if isinstance(leaf, Value) else leaf,
            (node.args, node.kwargs),
        )
        return replace(node, args=(*args[:2], 0) if alone else args, kwargs=kwargs)

    def part(self, k: int, node: Node) -> Node:
        """A node for one token."""
        part = self.parts[k]
        wanted = _through(self.old, node, part)
        assert wanted is not None
        shape = part.of(node.shapes[0])

        def argument(leaf: Any) -> Any:
            if isinstance(leaf, Value):
                return self.cut(leaf, wanted[leaf])
            if not isinstance(leaf, Tensor) or node.name not in POINTWISE:
                return leaf
            dim = part.dim - len(shape) + leaf.ndim
            broadcast = dim < 0 or leaf.shape[dim] == 1
            return leaf if broadcast else leaf.narrow(dim, part.index, 1)

        args, kwargs = mapped(argument, (node.args, node.kwargs))
        if node.name in VIEWS:
            args = (args[0], list(shape))
        return Node(node.op, args, kwargs, (shape, *node.shapes[1:]), node.dtypes)

    def cut(self, value: Value, part: Part | None) -> Value:
        """A token of a value, which may be all that there is of it; None for the whole."""
        new = self.place[value]
        if part is None or value.node in self.parts:
            return new
        node = self.old.nodes[value.node]
        shape, kinds = node.shapes[value.output], (node.dtypes[value.output],)
        if part.dim == 0:
            tokens = (ONE, part.length, *shape[1:])
            new = self.append(Node(aten.view.default, (new, list(tokens)), {}, (tokens,), kinds))
            args: tuple[Any, ...] = (new, 1, part.index)
            return self.append(Node(aten.select.int, args, {}, (part.of(shape),), kinds))
        args = (new, part.dim, part.index, part.index + 1)
        return self.append(Node(aten.slice.Tensor, args, {}, (part.of(shape),), kinds))
