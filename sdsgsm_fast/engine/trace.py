"""What a model computes, as a list of ATen operations that hold for every batch size.

After an ordinary pass on noise, which tells whether the model leaves anything behind (`effects`), it
runs twice on tensors without data (PyTorch's "meta" device), with batches of two sizes.
Whatever looks at the data, control flow included, raises there, so the list that remains is all
that the model does; every integer that differs between the runs must be proportional to the batch.
Those two runs neither compute nor allocate; a trace takes a few hundredths of a second.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ..common.noise import noise_like
from ..model.classifier import Classifier, logits_of
from .effects import EffectError, check_again, check_effects
from .leaves import leaves, mapped
from .own import OwnState
from .shapes import returned
from .state import State

BATCHES = (7, 67)
"""Sizes of the two batches: not 1, which broadcasts, and with no quotient or share in common.

The second is beyond what runs at once on a CPU, so that a model that splits its batches is noticed.
"""

WHOLE = {torch._C._nn.scaled_dot_product_attention: torch.ops.aten.scaled_dot_product_attention.default}
"""Functions that are recorded as one operation: their parts would be slower."""

BOUND_TO_A_LAYOUT = ("as_strided", "_reshape_alias", "set_", "resize_")


class TraceError(Exception):
    """The model is no fixed list of operations; the message says why."""


@dataclass(frozen=True)
class Value:
    """The result of an operation: `node` and which of its outputs."""

    node: int
    output: int = 0


@dataclass(frozen=True)
class PerImage:
    """An integer that is `count` times the batch size."""

    count: int


@dataclass(frozen=True, eq=False)
class BatchConstant:
    """A constant of which every image has the same `rows`, as a class token's."""

    rows: Tensor

    def of(self, count: int) -> Tensor:
        """For so many images."""
        if len(self.rows) == 1:
            return self.rows.expand(count, *self.rows.shape[1:])
        return self.rows.repeat(count, *(1 for _ in self.rows.shape[1:]))


@dataclass
class Node:
    """One operation.

    Attributes
    ----------
    op
        The ATen overload; None for the model's input.
    args, kwargs
        Its arguments: `Value` stands for a result, `PerImage` for a multiple of the batch, and
        `BatchConstant` for a constant as long as the batch.
    shapes
        Shape of each output, sizes as in the arguments.
    dtypes
        Dtype of each output.
    """

    op: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shapes: tuple[tuple[int | PerImage, ...], ...]
    dtypes: tuple[torch.dtype, ...]

    @property
    def name(self) -> str:
        """The operation's short name, as "convolution"; of another library's, with its own."""
        if self.op is None:
            return "input"
        short: str = self.op.overloadpacket.__name__
        return short if self.op.namespace == "aten" else f"{self.op.namespace}::{short}"

    @property
    def arguments(self) -> dict[str, Any]:
        """Its arguments by the names of its schema, defaults filled in."""
        found = {}
        for place, argument in enumerate(self.op._schema.arguments):
            default = argument.default_value if argument.has_default_value() else None
            given = self.args[place] if place < len(self.args) else default
            found[argument.name] = self.kwargs.get(argument.name, given)
        return found

    @property
    def lists(self) -> bool:
        """Whether it returns a list or several tensors."""
        returns = self.op._schema.returns
        return len(returns) > 1 or returns[0].type.kind() == "ListType"

    def inputs(self) -> list[Value]:
        """The results that it reads."""
        return [leaf for leaf in self.leaves() if isinstance(leaf, Value)]

    def leaves(self) -> list[Any]:
        """Its arguments, those in lists one by one."""
        return list(leaves((self.args, self.kwargs)))


JUMPS = frozenset(
    (
        *("round", "floor", "ceil", "trunc", "frac", "sign", "sgn", "heaviside", "fmod"),
        *("remainder", "floor_divide", "threshold", "hardshrink", "copysign", "angle", "atan2"),
        "mode",
    )
)
"""Floating operations that make a step of a rounding error."""


@dataclass(frozen=True)
class Graph:
    """Operations in their order; node 0 is the input, `output` the logits."""

    nodes: list[Node]
    output: Value

    def shape(self, leaf: Value | BatchConstant | Tensor) -> tuple[int | PerImage, ...]:
        """Shape of a result or a constant."""
        if isinstance(leaf, Value):
            return self.nodes[leaf.node].shapes[leaf.output]
        if isinstance(leaf, BatchConstant):
            return PerImage(len(leaf.rows)), *leaf.rows.shape[1:]
        return tuple(leaf.shape)

    def jump(self) -> str | None:
        """Name of an operation that makes a step of a rounding error; None if there is none.

        That is one with jumps, or one that makes integers or truth values of what the input holds.
        """
        read = {value for node in self.nodes for value in node.inputs()}
        by_input = {0}
        for k, node in enumerate(self.nodes):
            if not by_input.intersection(value.node for value in node.inputs()):
                continue
            by_input.add(k)
            if node.name in JUMPS or node.arguments.get("rounding_mode") is not None:
                return node.name
            kinds = [dtype for i, dtype in enumerate(node.dtypes) if Value(k, i) in read]
            if any(not (dtype.is_floating_point or dtype.is_complex) for dtype in kinds):
                return node.name
        return None


def trace(classifier: Classifier, images: Tensor, *, differentiable: bool = False) -> Graph:
    """Record what the model does with inputs of the images' size.

    Before that an ordinary pass on two images of noise, which is not counted, tells whether the
    model leaves anything behind that is not its own: such a model is never run without data.

    Parameters
    ----------
    classifier
        Its module is expected to be frozen.
    images
        (B, C, H, W), of which only shape, dtype, device and range are used.
    differentiable
        Also refuse what makes the gradient another than that of the operations: parts without
        gradient, hooks on tensors.

    Raises
    ------
    TraceError
        If the model looks at the data, draws random numbers, writes through views or outside
        itself, uses an operation without a meta kernel, or does something else for another batch
        size.
    """
    model = _uncompiled(classifier.model)
    # Under inference mode composite operations would be recorded whole, by other names.
    with (
        torch.inference_mode(False),
        torch.autocast(images.device.type, enabled=False),
        torch.set_grad_enabled(differentiable),
    ):
        inputs = classifier.inputs(noise_like(images)).repeat(2, 1, 1, 1)
        try:
            before = _watched(model, inputs, differentiable)
            try:
                first, second = (
                    _record(model, _without_data(inputs, batch), images.device, differentiable) for batch in BATCHES
                )
            finally:
                check_again(model, before)
        except EffectError as error:
            raise TraceError(str(error)) from error
    graph = _unify(first, second)
    for node in graph.nodes:
        drawing = node.op is not None and torch.Tag.nondeterministic_seeded in node.op.tags
        if drawing and node.arguments.get("dropout_p") != 0.0:  # attention without it draws nothing
            raise TraceError(f"{node.name}: draws random numbers")
    return _without_unread(_folded(graph))


@torch.no_grad()
def _folded(graph: Graph) -> Graph:
    """The graph with results that depend on no image as constants: positions made on the images' device."""
    constants: dict[Value, Tensor] = {}
    nodes = []
    for k, node in enumerate(graph.nodes):
        args, kwargs = mapped(lambda leaf: constants.get(leaf, leaf) if isinstance(leaf, Value) else leaf,
                              (node.args, node.kwargs))  # fmt: skip
        nodes.append(Node(node.op, args, kwargs, node.shapes, node.dtypes))
        varies = any(isinstance(leaf, (Value, PerImage, BatchConstant)) for leaf in nodes[-1].leaves())
        if node.op is not None and not node.lists and not varies:
            constants[Value(k)] = node.op(*args, **kwargs)
    return Graph(nodes, graph.output)


def _uncompiled(model: Any) -> Any:
    """The model that torch.compile was given, where it was given a whole one."""
    dynamo = sys.modules.get("torch._dynamo")
    whole = dynamo is not None and type(model) is dynamo.eval_frame.OptimizedModule
    return model._orig_mod if whole else model


def _watched(model: Any, inputs: Tensor, differentiable: bool) -> State:
    """Pass once through the model with data; what it reaches."""

    def run() -> None:
        try:
            model(_input(inputs, differentiable))
        except Exception as error:
            raise TraceError(_reason("input: the model cannot run", error)) from error

    return check_effects(model, run)


def _reason(what: str, error: Exception) -> str:
    text = (str(error).splitlines() or [""])[0]
    return f"{what} ({type(error).__name__}: {text})"


def _without_data(inputs: Tensor, batch: int) -> Tensor:
    return torch.empty(batch, *inputs.shape[1:], dtype=inputs.dtype, device="meta")


def _input(inputs: Tensor, differentiable: bool) -> Tensor:
    """What the model gets: no leaf, so that it may be written."""
    return inputs.detach().clone().requires_grad_(differentiable).clone()


def _record(model: Any, inputs: Tensor, device: torch.device, differentiable: bool) -> Graph:
    inputs = _input(inputs, differentiable)
    recorder = _Recorder(inputs, device, differentiable)
    random = torch.get_rng_state()
    own = OwnState(model)
    try:
        with recorder, _RecordWhole(recorder):
            logits = logits_of(model(inputs))
    except TraceError:
        raise
    except Exception as error:  # whatever the model raises, it cannot be traced
        what = f"{recorder.last}: the model cannot run without data"
        raise TraceError(_reason(what, error)) from error
    finally:
        own.restore()
    recorder.last = "output"
    if not recorder.made(logits):
        raise TraceError("output: the logits do not depend on the images")
    if not torch.equal(torch.get_rng_state(), random):
        raise TraceError("output: the model draws random numbers")
    if differentiable and any(t._backward_hooks for t in recorder.tensors()):
        raise TraceError("output: a hook may change the gradient")
    return _without_unread(Graph(recorder.nodes, recorder.value_of(logits)))


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down every operation on tensors without data.

    Operations on the model's own tensors alone run as usual: their results are constants.
    """

    def __init__(self, inputs: Tensor, device: torch.device, differentiable: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device, self.differentiable = device, differentiable
        self.last = "input"
        self.nodes = [Node(None, (), {}, (tuple(inputs.shape),), (inputs.dtype,))]
        self._values: dict[int, Value] = {id(inputs): Value(0)}
        self._alive: list[Any] = [inputs]  # ids stay unique while their tensors live
        self._twins: dict[int, Tensor] = {}
        self._sharing: dict[int, list[int]] = {_storage(inputs): [id(inputs)]}
        self._stale: set[int] = set()
        self._inside = False  # an operation that is recorded whole

    def tensors(self) -> list[Tensor]:
        """All results, and the input."""
        return [t for t in self._alive if isinstance(t, Tensor)]

    def made(self, tensor: Tensor) -> bool:
        """Whether a recorded operation made `tensor`."""
        return id(tensor) in self._values

    def value_of(self, tensor: Tensor) -> Value:
        """The operation that made `tensor`.

        Raises
        ------
        TraceError
            If it is none of the recorded, or another has written over it through a view.
        """
        if id(tensor) in self._stale:
            raise TraceError(f"{self.last}: reads a view of what was overwritten in place")
        if not self.made(tensor):
            raise TraceError(f"{self.last}: takes a tensor without data of unknown origin")
        return self._values[id(tensor)]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Keep PyTorch from loading torch.compile just to keep it out of here."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        on_meta = _on_meta(args, kwargs) or _is_meta(kwargs.get("device"))
        if self._inside or not on_meta:
            return func(*args, **kwargs)
        self.last = func.overloadpacket.__name__
        if self.last in BOUND_TO_A_LAYOUT:
            raise TraceError(f"{self.last}: depends on the layout in memory")
        self._check_gradient()
        if "device" in kwargs:
            kwargs["device"] = torch.device("meta")
        written = args[0] if func._schema.is_mutable else None
        recorded = mapped(self._argument, (args, kwargs))
        real_args, real_kwargs = mapped(self._twin, (args, kwargs))
        result = returned(func, real_args, real_kwargs)
        if written is not None:
            func = self._functional(func, written, result)
        self._note(func, recorded, result)
        return result

    def whole(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Write down an operation that has parts as one."""
        self.last = op.overloadpacket.__name__
        self._check_gradient()
        if torch.is_autocast_enabled(self.device.type):
            raise TraceError(f"{self.last}: runs under an autocast of the model's own")
        recorded = mapped(self._argument, (args, kwargs))
        real_args, real_kwargs = mapped(self._twin, (args, kwargs))
        self._inside = True
        try:
            result = _attention_of(op, *real_args, **real_kwargs)
        finally:
            self._inside = False
        self._note(op, recorded, result)
        return result

    def _check_gradient(self) -> None:
        if self.differentiable and not torch.is_grad_enabled():
            raise TraceError(f"{self.last}: runs without gradient")

    def _argument(self, leaf: Any) -> Any:
        """How an argument is written down."""
        if isinstance(leaf, torch.device):
            return self.device
        return self.value_of(leaf) if isinstance(leaf, Tensor) and leaf.is_meta else leaf

    def _twin(self, leaf: Any) -> Any:
        """Stand in for a real tensor; the same one each time."""
        if not isinstance(leaf, Tensor) or leaf.is_meta:
            return leaf
        if id(leaf) not in self._twins:
            self._alive.append(leaf)
            self._twins[id(leaf)] = torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device="meta")
        return self._twins[id(leaf)]

    def _functional(self, func: Any, written: Any, result: Any) -> Any:
        """Return the operation that does not write in place; what shares the memory is stale."""
        packet, name = func.overloadpacket, self.last
        counterpart = getattr(torch.ops.aten, name[:-1], None) if name.endswith("_") else None
        overload = getattr(counterpart, func._overloadname, None)
        if overload is None or result is not written or id(written) not in self._values:
            raise TraceError(f"{packet.__name__}: writes in place")
        self._stale.update(i for i in self._sharing[_storage(written)] if i != id(written))
        return overload

    def _note(self, func: Any, recorded: Any, result: Any) -> None:
        outputs = list(result) if isinstance(result, (tuple, list)) else [result]
        if not all(isinstance(out, Tensor) and out.is_meta for out in outputs):
            raise TraceError(f"{self.last}: does not return tensors")
        args, kwargs = recorded
        shapes = tuple(tuple(out.shape) for out in outputs)
        self.nodes.append(Node(func, args, kwargs, shapes, tuple(out.dtype for out in outputs)))
        for k, out in enumerate(outputs):
            self._alive.append(out)
            self._stale.discard(id(out))
            self._values[id(out)] = Value(len(self.nodes) - 1, k)
            sharing = self._sharing.setdefault(_storage(out), [])
            if id(out) not in sharing:
                sharing.append(id(out))


class _Attention(torch.autograd.Function):
    """What attention returns, without its parts, which take milliseconds without data."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return query.new_empty((*query.shape[:-1], value.shape[-1]))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise TraceError("scaled_dot_product_attention: the model takes a gradient of its own")


def _attention_of(op: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kw: Any) -> Any:
    if not query.shape[:-2] == key.shape[:-2] == value.shape[:-2]:
        return op(query, key, value, *args, **kw)
    return _Attention.apply(query, key, value)  # type: ignore[no-untyped-call]


class _RecordWhole(TorchFunctionMode):
    """Has the functions of `WHOLE` recorded as they are called."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in WHOLE and _on_meta(args, kwargs):
            return self.recorder.whole(WHOLE[func], args, kwargs)
        if func is F.multi_head_attention_forward:  # no mode sees what it calls
            return self._attention_of(func)(*args, **kwargs)
        return func(*args, **kwargs)

    def _attention_of(self, function: Any) -> Any:
        """A copy of PyTorch's function that calls the recorder for its attention."""
        own = F.scaled_dot_product_attention
        if own not in WHOLE or type(function) is not FunctionType:
            return function  # somebody else's

        def attention(*args: Any, **kwargs: Any) -> Any:
            if _on_meta(args, kwargs):
                return self.recorder.whole(WHOLE[own], args, kwargs)
            return own(*args, **kwargs)

        names = function.__globals__ | {"scaled_dot_product_attention": attention}
        copy = FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
        copy.__kwdefaults__ = function.__kwdefaults__
        return copy


def _on_meta(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a tensor among the arguments has no data."""
    return any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in leaves((args, kwargs)))


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _is_meta(device: Any) -> bool:
    return device is not None and torch.device(device).type == "meta"


def _without_unread(graph: Graph) -> Graph:
    """The graph without the operations whose results nobody reads."""
    wanted, kept = {0, graph.output.node}, []
    for k in reversed(range(len(graph.nodes))):
        if k in wanted:
            wanted.update(value.node for value in graph.nodes[k].inputs())
            kept.append(k)
    place = {old: new for new, old in enumerate(reversed(kept))}

    def moved(leaf: Any) -> Any:
        return Value(place[leaf.node], leaf.output) if isinstance(leaf, Value) else leaf

    nodes = []
    for k in reversed(kept):
        node = graph.nodes[k]
        args, kwargs = mapped(moved, (node.args, node.kwargs))
        nodes.append(Node(node.op, args, kwargs, node.shapes, node.dtypes))
    return Graph(nodes, moved(graph.output))


def _unify(first: Graph, second: Graph) -> Graph:
    """The one graph of which both traces are instances.

    Raises
    ------
    TraceError
        If they differ in anything but multiples of the batch size.
    """
    if len(first.nodes) != len(second.nodes) or first.output != second.output:
        raise TraceError("batch: the operations depend on its size")
    nodes = []
    for a, b in zip(first.nodes, second.nodes, strict=True):
        if a.op is not b.op or a.dtypes != b.dtypes:
            raise TraceError(f"{a.name}: another operation for another batch size")
        mine, others = (a.args, a.kwargs, a.shapes), (b.args, b.kwargs, b.shapes)
        args, kwargs, shapes = _unified(a.name, mine, others)
        nodes.append(Node(a.op, args, kwargs, shapes, a.dtypes))
    return Graph(nodes, first.output)


def _unified(name: str, a: Any, b: Any) -> Any:
    """What two runs say of the same arguments."""
    kind, inner = type(a), (list, tuple, dict)
    if kind is type(b) and isinstance(a, inner) and len(a) == len(b):
        if isinstance(a, dict) and a.keys() == b.keys():
            return {key: _unified(name, a[key], b[key]) for key in a}
        if not isinstance(a, dict):
            found = [_unified(name, x, y) for x, y in zip(a, b, strict=True)]
            return found if kind is list else tuple(found)
    return _merged(name, a, b)


def _merged(name: str, a: Any, b: Any) -> Any:
    """What two runs say of one argument: the same, or a multiple of the batch size."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if _same(a, b):
            return a
        rows = _repeated(a, b)
        if rows is not None:
            return BatchConstant(rows)
    elif type(a) is int and type(b) is int and a != b:
        if a % BATCHES[0] == 0 and a // BATCHES[0] * BATCHES[1] == b:
            return PerImage(a // BATCHES[0])
    elif type(a) is type(b) and (a == b or a is b or (a != a and b != b)):
        return a
    raise TraceError(f"{name}: its arguments depend on the batch size")


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two constants are one: the same memory, or the same values."""
    if a is b or a.shape != b.shape or a.dtype != b.dtype or a.device != b.device:
        return a is b
    return (a.data_ptr() == b.data_ptr() and a.stride() == b.stride()) or torch.equal(a, b)


def _repeated(a: Tensor, b: Tensor) -> Tensor | None:
    """The rows of an image, where two constants hold them once for each image of a batch."""
    if not a.ndim or a.ndim != b.ndim or a.dtype != b.dtype or a.device != b.device:
        return None
    each, rest = divmod(len(a), BATCHES[0])
    if rest or not each or len(b) != each * BATCHES[1] or a.shape[1:] != b.shape[1:]:
        return None
    rows = a[:each]
    same = all(bool((t.reshape(-1, *rows.shape) == rows).all()) for t in (a, b))
    return rows.clone() if same else None
