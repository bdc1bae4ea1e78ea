"""What was worked out for a model, kept for its next batch while the model stays as it is.

Nothing is taken on trust: all that the model reaches is compared, and its weights to the bit.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from ..common.host import unequal
from .leaves import mapped
from .state import State
from .trace import BatchConstant, Graph, Node

T = TypeVar("T")

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


Copies = list[tuple[Callable[[], Tensor | None], Tensor]]
"""Weak references to a model's weights, each with a copy."""


@dataclass(frozen=True)
class _Entry(Generic[T]):
    owner: Callable[[], Any]  # a weak reference
    settings: Any
    state: State
    weights: Copies
    made: T


class PlanCache(Generic[T]):
    """Holds what was made of one model, until another comes or that one is gone."""

    def __init__(self) -> None:
        self._held: _Entry[T] | None = None

    def of(self, model: Any, settings: Any, graph: Callable[[], Graph], make: Callable[[Graph], T]
    ) -> T:  # fmt: skip
        """What was made of the same model with the same settings, or what `make` makes of it.

        Parameters
        ----------
        model
            A module or another callable; what cannot be referred to weakly is made anew each time.
        settings
            Whatever else it depends on, compared by ``==``.
        graph
            Traces the model.
        make
            Gets a trace with weights of its own, which do not change with the model's.
        """
        owner, state = model.__self__ if type(model) is MethodType else model, State(model)
        held = self._held
        if (
            held is not None
            and held.owner() is owner
            and held.settings == settings
            and held.state.same(state)
            and same_bits(held.weights)
        ):
            return held.made
        traced = graph()  # may raise
        self._held = held = None  # before the next one takes memory
        try:
            reference = weakref.ref(owner, self._gone)
        except TypeError:
            return make(traced)
        own, weights = copied(traced, state)
        made = make(own)
        self._held = _Entry(reference, settings, state, weights, made)
        return made

    def drop(self) -> None:
        """Hold nothing."""
        self._held = None

    def _gone(self, reference: Any) -> None:
        if self._held is not None and self._held.owner is reference:
            self._held = None


def copied(graph: Graph, state: State) -> tuple[Graph, Copies]:
    """The same graph with weights of its own, and each of the model's with its copy.

    What the graph does not read itself may be what its constants were computed from.
    """
    copies: dict[int, Tensor] = {}

    def copy(leaf: Any) -> Any:
        if isinstance(leaf, BatchConstant):
            return BatchConstant(copy(leaf.rows))
        if not isinstance(leaf, Tensor):
            return leaf
        if id(leaf) not in copies:
            copies[id(leaf)] = leaf.detach().clone()
        return copies[id(leaf)]

    nodes = []
    for node in graph.nodes:
        args, kwargs = mapped(copy, (node.args, node.kwargs))
        nodes.append(Node(node.op, args, kwargs, node.shapes, node.dtypes))
    weights: Copies = [(weakref.ref(tensor), copy(tensor)) for tensor in state.tensors()]
    return Graph(nodes, graph.output), weights


def copies_of(state: State) -> Copies:
    """All tensors that a model reaches, with their copies."""
    return [(weakref.ref(tensor), tensor.detach().clone()) for tensor in state.tensors()]


def same_bits(copies: Copies) -> bool:
    """Whether all tensors still have the values of their copies."""
    pairs = []
    for ref, copy in copies:
        tensor = ref()
        pair = None if tensor is None else _bits_of(tensor, copy)
        if pair is None:
            return False
        pairs.append(pair)
    return not any(unequal(pairs))


def _bits_of(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor] | None:
    """The bits of a tensor and its copy, as integers; None where they cannot be compared or differ in kind."""
    if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device:
        return None
    bits = BITS.get(a.dtype.itemsize)
    if bits is None or a.layout != torch.strided or b.layout != torch.strided:
        return None
    return a.detach().view(bits), b.detach().view(bits)
