"""Nothing that is not the model's own is written to, not even while it is put back."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from typing import Any

import foreign
import pytest
import torch
import zoo
from nets import Looking, convnet, predicted
from torch import Tensor, nn

from sdsgsm_fast import BIM, SDSGSM, occlusion_scores
from sdsgsm_fast.engine.effects import _guilty
from sdsgsm_fast.engine.state import State
from sdsgsm_fast.engine.trace import TraceError, trace
from sdsgsm_fast.model.classifier import Classifier

NAMES = (
    "ACTIVATIONS", "DEFAULTS", "USER", "WEAK", "ORDERED", "COUNTS", "LOG", "RECENT", "SHAPES",
    "CACHE", "GUARDED", "SLOTTED", "SPACE", "CALLS",
)  # fmt: skip


def raw(value: Any) -> Any:
    """Contents of a foreign object by the identities of what it holds, read past its own methods."""
    for kind in (dict, list, set):
        if isinstance(value, kind):
            items = dict.items(value) if kind is dict else kind.__iter__(value)
            found = [tuple(map(id, i)) if kind is dict else id(i) for i in items]
            return sorted(found) if kind is set else found
    slots = [getattr(value, name) for name in getattr(type(value), "__slots__", ())]
    attributes = object.__getattribute__(value, "__dict__") if hasattr(value, "__dict__") else {}
    return [(name, id(v), raw(v) if isinstance(v, dict) else None) for name, v in attributes.items()] + [
        id(v) for v in slots
    ]


def everything() -> dict[str, Any]:
    found = {name: (id(vars(foreign)[name]), raw(vars(foreign)[name])) for name in NAMES}
    return found | {
        "STEPS": repr(foreign.STEPS), "class": (raw(foreign.Base.seen), foreign.Base.calls),
        "queue": foreign.QUEUE.qsize(), "caches": foreign.grid.cache_info().currsize,
    }  # fmt: skip


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    kept = {name: copy.copy(vars(foreign)[name]) for name in ("LOG", "RECENT", "SHAPES", "CACHE")}
    foreign.grid.cache_clear()
    yield
    for name in kept:
        vars(foreign)[name].clear()
    foreign.Base.seen.clear()
    foreign.SPACE.last = foreign.SLOTTED.last = None
    while not foreign.QUEUE.empty():
        foreign.QUEUE.get()


class Reader(nn.Module, foreign.Base):
    """Reads from everywhere and writes to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.table = convnet(spread=0.5), foreign.ORDERED
        self.alias, self.lazy, self.weak = foreign.DEFAULTS, foreign.ACTIVATIONS, foreign.WEAK

    def forward(self, x: Tensor) -> Tensor:
        x = foreign.ACTIVATIONS["relu"](x) * foreign.USER["scale"] * foreign.scale("relu")
        guarded, counted = foreign.GUARDED.calls, foreign.COUNTS.get("x", 0)
        x = x + guarded + counted + foreign.SLOTTED.calls + self.calls + len(foreign.LOG)
        return self.net(foreign.WEAK["held"](x) * foreign.DEFAULTS["widths"][0])


RUNS: dict[str, Callable[[Any, Tensor], Any]] = {
    "scores": lambda m, x: occlusion_scores(m, x, score="logit"),
    "incremental": lambda m, x: occlusion_scores(m, x, method="incremental"),
    "attack": lambda m, x: SDSGSM(m, steps=4)(x, predicted(m, x)),
    "strict": lambda m, x: SDSGSM(m, steps=2, precision="float32")(x, predicted(m, x)),
    "streamed": lambda m, x: list(BIM(m, steps=4).stream([(x, predicted(m, x))] * 2)),
}


@pytest.mark.parametrize("name", RUNS)
def test_what_a_model_only_reads_stays_as_it_is(name: str) -> None:
    model, images = Reader().eval(), torch.rand(3, 3, 16, 16)
    before = everything()
    RUNS[name](model, images)
    assert everything() == before
    assert model.table is foreign.ORDERED
    assert model.lazy is foreign.ACTIVATIONS
    assert nn.ReLU in [kind for _, kind in dict.items(foreign.ACTIVATIONS)]
    with Classifier(model).frozen():
        trace(Classifier(model), images)  # is possible


def test_what_was_weakly_held_still_goes() -> None:
    held = nn.Identity()
    foreign.WEAK["other"] = held
    attack, images = SDSGSM(Reader().eval(), steps=4), torch.rand(2, 3, 16, 16)
    attack(images, torch.zeros(2, dtype=torch.int64))
    occlusion_scores(attack.classifier.model, images)
    del held
    assert "other" not in foreign.WEAK


def _count_globally(x: Tensor) -> None:
    foreign.CALLS += 1


def _count_for_the_class(x: Tensor) -> None:
    foreign.Base.calls += 1


def _keep_in(container: Any, how: str) -> Callable[[Tensor], Any]:
    return lambda x: getattr(container, how)(x)


WRITES: dict[str, Callable[[Tensor], Any]] = {
    "list": lambda x: foreign.LOG.append(x),
    "shapes in a list": lambda x: foreign.LOG.append(tuple(x.shape)),
    "deque": lambda x: foreign.RECENT.append(x),
    "set": lambda x: foreign.SHAPES.add(x),
    "default": lambda x: foreign.DEFAULTS["calls"].append(1),
    "counter": lambda x: foreign.COUNTS.update(["x"]),
    "user dict": lambda x: foreign.USER.__setitem__("last", x),
    "cache by shape": lambda x: foreign.CACHE.setdefault(x.shape, torch.zeros_like(x)),
    "cache of the class": lambda x: foreign.Base.seen.setdefault(len(x), x.mean()),
    "calls of the class": _count_for_the_class,
    "global": _count_globally,
    "object": lambda x: setattr(foreign.SPACE, "last", x),
    "slots": lambda x: setattr(foreign.SLOTTED, "last", x),
    "guarded": lambda x: setattr(foreign.GUARDED, "calls", foreign.GUARDED.calls + 1),
    "iterator": lambda x: next(foreign.STEPS),
    "lru_cache": lambda x: foreign.grid(x.shape[-1], len(x), x.device),
    "out of sight": lambda x: foreign.QUEUE.put(x),
    "closure": _keep_in(foreign.LOG, "append"),
}


class Writer(nn.Module):
    def __init__(self, write: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.net, self.write = convnet(spread=0.5), write

    def forward(self, x: Tensor) -> Tensor:
        self.write(x)
        return self.net(x)


def tensors() -> list[Tensor]:
    """All tensors that the foreign module holds."""
    waiting = [dict.values(foreign.CACHE), foreign.LOG, foreign.RECENT, foreign.SHAPES]
    waiting += [[foreign.SPACE.last, foreign.SLOTTED.last], foreign.USER.values()]
    waiting.append(foreign.Base.seen.values())
    queued = []
    while not foreign.QUEUE.empty():
        queued.append(foreign.QUEUE.get())
    return [t for group in (*waiting, queued) for t in group if isinstance(t, Tensor)]


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("name", ["scores", "attack"])
def test_a_model_that_leaves_something_elsewhere_is_not_traced(write: str, name: str) -> None:
    """Twice, since a cache is filled by the first; what is left comes from passes with data."""
    model, images = Writer(WRITES[write]).eval(), torch.rand(3, 3, 16, 16)
    for _ in range(2):
        found = RUNS[name](model, images)
    assert not any(t.is_meta or t.dtype != torch.float32 for t in tensors())
    with pytest.raises(TraceError, match=r"a pass (changes|keeps)|may be a cache"):
        trace(Classifier(model), images)
    assert torch.equal(found, RUNS[name](Looking(model), images))


def test_a_cache_that_was_filled_before_is_left_alone() -> None:
    model, images = Writer(WRITES["cache by shape"]).eval(), torch.rand(3, 3, 16, 16)
    for count in (1, 7, 3):
        model(images[:1].expand(count, -1, -1, -1))
    known = list(foreign.CACHE)
    with pytest.raises(TraceError, match="CACHE holds tensors and may be a cache"):
        trace(Classifier(model), images)
    assert list(foreign.CACHE) == known


def test_a_model_that_breaks_leaves_everything_as_it_was() -> None:
    class Breaking(Reader):
        def forward(self, x: Tensor) -> Tensor:
            super().forward(x)
            raise RuntimeError("broken")

    before, images = everything(), torch.rand(2, 3, 16, 16)
    for name in ("scores", "attack"):
        with pytest.raises(RuntimeError, match="broken"):
            RUNS[name](Breaking().eval(), images) if name == "scores" else SDSGSM(Breaking().eval())(
                images, torch.zeros(2, dtype=torch.int64)
            )
    assert everything() == before


def test_a_hook_that_is_gone_counts_no_more() -> None:
    model, images = zoo.residual().eval(), torch.rand(2, 3, 16, 16)
    hook = model.layers["a"].register_forward_hook(lambda m, x, y: foreign.LOG.append(y))
    for _ in range(2):
        with pytest.raises(TraceError, match=r"a pass changes foreign\.LOG"):
            trace(Classifier(model), images)
    hook.remove()
    assert trace(Classifier(model), images).nodes
    del model
    assert not any(ref() is None for ref, *_ in _guilty.values())


class Shared(nn.Module):
    """Its own state, and a list that its maker also holds."""

    def __init__(self, log: list[int]) -> None:
        super().__init__()
        self.net, self.log, self.own, self.last = convnet(spread=0.5), log, [], None
        self.nested: dict[str, Any] = {"sizes": set(), "all": []}

    def forward(self, x: Tensor) -> Tensor:
        if self.log is not None:
            self.log.append(len(x))
        self.own.append(len(x))
        self.nested["sizes"].add(len(x))
        self.nested["all"].append(x)
        self.last = x
        self.fresh = x
        return self.net(x)


def test_only_what_nobody_else_holds_is_put_back() -> None:
    images = torch.rand(2, 3, 16, 16)
    held: list[int] = [5]
    model = Shared(held).eval()
    with pytest.raises(TraceError, match="a pass changes Shared"):
        trace(Classifier(model), images)
    assert held == [5, 2]
    assert model.own == model.nested["all"] == []
    model = Shared([5]).eval()
    own, nested = model.own, model.nested
    del own, nested  # as long as somebody holds them they are not the model's alone
    trace(Classifier(model), images)
    assert (model.own, model.log, model.last) == ([], [5], None)
    assert model.nested == {"sizes": set(), "all": []}
    assert not hasattr(model, "fresh")


def test_pytorchs_functions_stay_pytorchs() -> None:
    """Also in the eyes of other threads while a model is traced."""
    seen = set()

    class Watching(zoo.Transformer):
        def forward(self, x: Tensor) -> Tensor:
            seen.add(id(torch.nn.functional.scaled_dot_product_attention))
            return super().forward(x)

    own = torch.nn.functional.scaled_dot_product_attention
    model = zoo.Transformer("encoder").eval()
    model.layers.layers[0].self_attn.register_forward_pre_hook(lambda m, x: None)
    names = [node.name for node in trace(Classifier(model), torch.rand(2, 3, 20, 24)).nodes]
    assert names.count("scaled_dot_product_attention") == 2
    assert torch.nn.functional.scaled_dot_product_attention is own


@pytest.mark.parametrize("how", ["layer", "function", "whole"])
def test_torch_compile_is_left_as_it_is(how: str) -> None:
    compilations = []

    def backend(graph: Any, _: Any) -> Any:
        compilations.append(graph)
        return graph.forward

    net, images = zoo.residual().eval(), torch.rand(3, 3, 16, 16)
    model: Any = net
    if how == "layer":
        net.layers["a"].compile(backend=backend)
    elif how == "whole":
        model = torch.compile(net, backend=backend, fullgraph=True)
    else:
        scaled = torch.compile(lambda x: x * 2, backend=backend)
        model = zoo.Net(lambda m, x: m["a"](scaled(x)), {"a": zoo.conv(3, 8)}, 8).eval()
    expected = occlusion_scores(Looking(model), images)
    stance = sys.modules["torch._dynamo"].eval_frame._stance
    if how == "whole":
        trace(Classifier(model), images)
    else:
        with pytest.raises(TraceError, match="compiled by torch"):
            trace(Classifier(model), images)
    found = occlusion_scores(model, images)
    assert torch.allclose(found, expected, atol=1e-5)
    assert compilations or how == "layer"  # PyTorch compiles no layer of its own library
    assert torch.equal(model(images), Looking(model)(images))
    assert sys.modules["torch._dynamo"].eval_frame._stance is stance


ROPE: dict[Any, tuple[Tensor, Tensor]] = {}


def test_a_warm_cache_of_tuples_by_device_is_left_alone() -> None:
    class Rope(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = convnet(spread=0.5)

        def forward(self, x: Tensor) -> Tensor:
            key = x.shape[-1], x.device
            if key not in ROPE:
                angle = torch.arange(float(x.shape[-1]), device=x.device)
                ROPE[key] = angle.cos(), angle.sin()
            return self.net(x * ROPE[key][0])

    model, images = Rope().eval(), torch.rand(2, 3, 16, 16)
    model(images)
    known = list(ROPE)
    RUNS["scores"](model, images)
    with pytest.raises(TraceError, match="ROPE holds tensors"):
        trace(Classifier(model), images)
    assert list(ROPE) == known


def test_a_list_in_a_tuple_that_others_hold_is_not_the_models() -> None:
    log: list[int] = []

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = convnet(spread=0.5)
            self.a = self.b = (log,)

        def forward(self, x: Tensor) -> Tensor:
            self.a[0].append(len(x))
            return self.net(x)

    with pytest.raises(TraceError, match="a pass changes"):
        trace(Classifier(Twice().eval()), torch.rand(2, 3, 16, 16))
    assert log == [2]


def test_a_tensor_that_is_no_buffer_is_not_counted_up() -> None:
    model, images = Writer(lambda x: None).eval(), torch.rand(2, 3, 16, 16)
    model.calls = torch.zeros(())
    model.write = lambda x: model.calls.add_(1)
    with pytest.raises(TraceError, match="writes to a tensor that is no buffer"):
        trace(Classifier(model), images)
    assert int(model.calls) == 1


class Hostile(type):
    """A metaclass of which nothing may run while state is read."""

    armed = False

    def __getattribute__(cls, name: str) -> Any:
        assert not Hostile.armed, name
        return super().__getattribute__(name)

    def __hash__(cls) -> int:
        assert not Hostile.armed
        return 0


def test_no_metaclass_runs_while_state_is_read() -> None:
    class Setting(metaclass=Hostile):
        value = 2.0

    model = Reader().eval()
    model.setting = Setting()
    Hostile.armed = True
    try:
        state = State(model)
        assert state.same(State(model))
    finally:
        Hostile.armed = False
