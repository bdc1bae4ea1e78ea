"""Incremental occlusion equals full forward passes, on any structure; what cannot, runs dense."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import zoo
from cpu import onednn_in_bfloat16
from nets import Looking, convnet, predicted
from states import same, state
from torch import Tensor, nn

from sdsgsm_fast import occlusion_map, occlusion_scores
from sdsgsm_fast.common.windows import Windows
from sdsgsm_fast.engine import layer as layers
from sdsgsm_fast.engine import window_runner as replay
from sdsgsm_fast.engine.convolution import Convolution
from sdsgsm_fast.engine.layer import Layer
from sdsgsm_fast.engine.lower import lower
from sdsgsm_fast.engine.plan import SHARES, Plan, Planner
from sdsgsm_fast.engine.plan_runner import PlanRunner
from sdsgsm_fast.engine.reach import Reach, Span
from sdsgsm_fast.engine.trace import BATCHES, trace
from sdsgsm_fast.kernels import native
from sdsgsm_fast.model.classifier import Classifier

FILL = (0.2, 0.5, 0.7)
GEOMETRIES = [
    ((2, 3, 20, 20), 4, 4),
    ((3, 3, 19, 26), (5, 3), (4, 2)),
    ((1, 3, 23, 17), (3, 6), (1, 5)),
    ((2, 3, 16, 16), 16, 7),
]


def full_logits(net: nn.Module, images: Tensor, windows: Windows) -> Tensor:
    """One forward pass a window."""
    found = []
    with torch.no_grad():
        for image in images:
            for rows, cols in windows:
                occluded = image[None].clone()
                occluded[:, :, rows, cols] = torch.tensor(FILL, dtype=image.dtype)[:, None, None]
                found.append(net(occluded))
    return torch.cat(found)


def planner_of(net: nn.Module, images: Tensor, windows: Windows) -> Planner:
    network = lower(trace(Classifier(net), images), images.dtype, images.device, "auto")
    return Planner(network, windows, 20.0)


def plans(net: nn.Module, images: Tensor, windows: Windows) -> list[Plan]:
    """Every plan, from dense to tiles wherever they fit, each once."""
    found: list[Plan] = []
    planner = planner_of(net, images, windows)
    for share in (0.0, *SHARES, 1.0):
        plan = planner.plan(share)
        if not found or plan.actions != found[-1].actions:
            found.append(plan)
    return found


def replayed(plan: Plan, images: Tensor, windows: Windows, backend: str = "auto") -> Tensor:
    """Logits of the plan's windows, image by image."""
    fill = torch.tensor(FILL, dtype=images.dtype)
    runner = PlanRunner(plan, fill, windows, fill.device, backend)
    size = (len(images), len(plan.rows), len(plan.cols))
    places = torch.ones(size).nonzero().int().unbind(1)
    steps = plan.network.steps
    constants = {k: s.constant for k, s in enumerate(steps) if s.constant is not None}
    clean = plan.network.run(images, plan.sources - constants.keys())
    parts = zip(*(place.split(50) for place in places), strict=True)
    return torch.cat([runner.logits({**constants, **clean}, *part) for part in parts])


@pytest.mark.parametrize("name", ["inception", "residual", "dilated", "frozen_norm"])
@pytest.mark.parametrize("classes", [2, 3, 4])
def test_windows_sorted_by_their_distance_from_the_border(name: str, classes: int) -> None:
    net, images = zoo.TILED[name]().eval(), torch.rand(2, 3, 26, 33)
    windows = Windows.over(26, 33, (4, 5), (4, 3))
    expected = full_logits(net, images, windows).view(2, windows.rows, windows.cols, -1)
    planner = planner_of(net, images, windows)
    seen = torch.zeros(windows.rows, windows.cols)
    for plan in planner.split(classes):
        found = replayed(plan, images, windows).view(2, len(plan.rows), len(plan.cols), -1)
        rows, cols = torch.tensor(plan.rows)[:, None], torch.tensor(plan.cols)
        off = float((found - expected[:, rows, cols]).abs().max())
        assert off <= 1e-5 * max(1.0, float(expected.abs().max()))
        seen[rows, cols] += 1
    assert torch.all(seen == 1)
    whole = planner.split(1)[0]
    apart = sum(p.cost * len(p.rows) * len(p.cols) for p in planner.split(classes))
    assert apart <= whole.cost * len(windows)
    if name != "frozen_norm":  # whose map of positions costs the same wherever a window lies
        assert apart < whole.cost * len(windows)


@pytest.mark.parametrize("name", [*zoo.TILED, *zoo.MIXED])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_every_plan_is_exact(name: str, geometry: Any) -> None:
    shape, patch, stride = geometry
    if name in ("adaptive", "attention", "transposed"):
        shape = (*shape[:2], 20, 24)
    net, images = (zoo.TILED | zoo.MIXED)[name]().eval(), torch.rand(shape)
    windows = Windows.over(*shape[2:], patch, stride)
    expected = full_logits(net, images, windows)
    found = plans(net, images, windows)
    tolerance = 1e-5 * max(1.0, float(expected.abs().max()))
    for plan in found:
        assert float((replayed(plan, images, windows) - expected).abs().max()) <= tolerance
    tiled = [sum(action.tiled for action in plan.actions) for plan in found]
    assert tiled[0] == 0
    assert tiled[-1] > 0
    if name in zoo.TILED:  # every map, when tiles may cover all of it
        steps = found[-1].network.steps
        maps = [s for s in steps[1:] if s.shape is not None and s.constant is None]
        assert tiled[-1] == len(maps), [s.name for s in maps if s.tile is None]
    clean = net(images).detach().repeat_interleave(len(windows), 0)
    assert float((expected - clean).abs().max()) > 0.01, "the windows change the logits"


@pytest.mark.parametrize("seed", range(40))
def test_random_networks(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(seed)
    if seed % 2:  # by Winograd's products wherever they can be
        monkeypatch.setattr(layers, "LEAST_CHANNELS", 1)
    net = zoo.RandomNet(seed).eval()
    size = [int(torch.randint(9, 24, ())) for _ in range(2)]
    patch = [int(torch.randint(1, n, ())) for n in size]
    stride = [int(torch.randint(1 + p // 4, p + 1, ())) for p in patch]
    images = torch.rand(2, 3, *size)
    windows = Windows.over(*size, tuple(patch), tuple(stride))
    expected = full_logits(net, images, windows)
    tolerance = 1e-5 * max(1.0, float(expected.abs().max()))
    for plan in plans(net, images, windows):
        assert float((replayed(plan, images, windows) - expected).abs().max()) <= tolerance


def test_backends_agree(backend: str) -> None:
    net, images = zoo.inception().eval(), torch.rand(2, 3, 17, 14)
    windows = Windows.over(17, 14, 5, 4)
    plan = plans(net, images, windows)[-4]
    assert plan.incremental
    expected = full_logits(net, images, windows)
    assert float((replayed(plan, images, windows, backend) - expected).abs().max()) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("net_of", [zoo.residual, zoo.inception, zoo.ceil_mode])
def test_models_of_other_dtypes(dtype: torch.dtype, net_of: Callable[[], nn.Module]) -> None:
    net, images = net_of().eval().to(dtype), torch.rand(2, 3, 16, 16).to(dtype)
    found = occlusion_scores(net, images, method="incremental", score="logit")
    expected = occlusion_scores(Looking(net), images, score="logit")
    tolerance = {torch.float64: 1e-12, torch.float16: 0.02, torch.bfloat16: 0.1}[dtype]
    assert float((found - expected).abs().max()) <= tolerance


def test_without_onednn_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    net, images = zoo.residual().eval(), torch.rand(2, 3, 16, 16)
    layer = Layer(Convolution(torch.rand(8, 8, 3, 3), None, (1, 1), (1, 1), (1, 1), 1), "auto")
    assert layer.form(8, 8) == "fused"
    with_it = occlusion_scores(net, images, method="incremental", score="logit")
    with torch.backends.mkldnn.flags(enabled=False):
        assert layer.form(8, 8) == "plain"
        without = occlusion_scores(net, images, method="incremental", score="logit")
    assert torch.allclose(with_it, without, atol=1e-5)

    def changed(*arguments: Any) -> Tensor:
        raise TypeError("another signature")

    monkeypatch.setattr(layers, "_packed", changed)
    layers._onednn_agrees.cache_clear()
    try:
        assert layer.form(8, 8) == "plain"
    finally:
        layers._onednn_agrees.cache_clear()


@pytest.mark.parametrize("method", ["auto", "dense", "incremental"])
def test_methods_agree_with_the_model_itself(method: str) -> None:
    net, images = zoo.residual().eval(), torch.rand(5, 3, 21, 18)
    settings: dict[str, Any] = {
        "patch": (5, 4), "stride": (3, 4), "fill": FILL, "mean": 0.4, "std": (0.2, 0.3, 0.25),
    }  # fmt: skip
    found = occlusion_map(net, images, method=method, **settings)
    expected = occlusion_map(Looking(net), images, **settings)
    assert float((found - expected).abs().max()) <= 1e-5


def test_incremental_saves_work() -> None:
    """The plan of a deep enough network predicts a fraction of the dense one's operations."""
    layers = [m for _ in range(5) for m in (zoo.conv(8, 8), nn.ReLU())]
    net = nn.Sequential(zoo.conv(3, 8), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    images, windows = torch.rand(1, 3, 64, 64), Windows.over(64, 64, 4)
    found = plans(net.eval(), images, windows)
    assert min(plan.cost for plan in found) < 0.2 * found[0].cost


class Doubling(nn.Module):
    """Writes over its result through a view, where an image is darker than any of the test's."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        logits[:, 0] = logits[:, 0] - 50 * (x.amin((1, 2, 3)) < 1e-6).float()
        return logits


def _stale(x: Tensor) -> Tensor:
    part = x[:, :4]
    part.relu_()
    return x


REFUSALS: dict[str, tuple[nn.Module, str]] = {
    "control flow": (Looking(convnet()), "isfinite|_local_scalar_dense|item|all"),
    "numpy": (zoo.Net(lambda m, x: torch.from_numpy(m["a"](x).detach().numpy()), {"a": zoo.conv(3, 8)}, 8), "numpy"),
    "random": (zoo.Net(lambda m, x: m["a"](x) + torch.rand_like(x[:, :1]), {"a": zoo.conv(3, 8)}, 8), "rand"),
    "batch": (zoo.Net(lambda m, x: m["a"](x) / max(len(x), 8), {"a": zoo.conv(3, 8)}, 8), "batch"),
    "half the batch": (zoo.Net(lambda m, x: m["a"](x) + x[: len(x) // 2].mean(), {"a": zoo.conv(3, 8)}, 8), "slice.*batch"),
    "strides": (zoo.Net(lambda m, x: m["a"](x.as_strided(x.shape, x.stride())), {"a": zoo.conv(3, 8)}, 8), "as_strided"),
    "stale view": (zoo.Net(lambda m, x: _stale(m["a"](x)), {"a": zoo.conv(3, 8)}, 8), "view"),
    "written output": (Doubling(convnet()), "output: reads a view"),
    "no maps": (nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 4)), "view"),
    "global from the start": (zoo.Net(lambda m, x: m["a"](F.group_norm(x, 1)), {"a": zoo.conv(3, 8)}, 8), "group_norm"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_proven_runs_dense_and_incremental_names_it(name: str) -> None:
    net, reason = REFUSALS[name]
    images = torch.rand(2, 3, 8, 8)
    with pytest.raises(ValueError, match=f"method: 'incremental' cannot run this model: .*({reason})"):
        occlusion_scores(net.eval(), images, method="incremental")
    for method in ("auto", "dense"):
        torch.manual_seed(1)
        found = occlusion_scores(net, images, method=method, patch=4, score="logit")
        assert found.shape == (2, 2, 2)
        if name not in ("random", "batch", "half the batch"):  # whose logits are no image's own
            expected = full_logits(net, images, Windows.over(8, 8, 4))
            classes = predicted(net, images)
            zeroed = occlusion_scores(net, images, classes, method=method, patch=4, score="logit", fill=FILL).flatten()
            clean = net(images).detach().gather(1, classes[:, None]).repeat_interleave(4)
            by_hand = clean - expected.gather(1, classes.repeat_interleave(4)[:, None])[:, 0]
            assert torch.allclose(zeroed, by_hand, atol=1e-5)


ODD: dict[str, nn.Module] = {
    "sum of a smaller map": zoo.Net(lambda m, x: F.relu(m["a"](x) + m["b"](m["a"](x).mean((2, 3), keepdim=True))), {"a": zoo.conv(3, 8), "b": nn.Conv2d(8, 8, 1)}, 8),
    "sum of fewer channels": zoo.Net(lambda m, x: F.relu(m["b"](m["a"](x)) + m["a"](x)), {"a": zoo.conv(3, 8), "b": nn.Conv2d(8, 1, 1)}, 8),
    "scale of more channels": zoo.Net(lambda m, x: m["b"](m["a"](x) * torch.linspace(0.5, 1, 8)[None, :, None, None]), {"a": nn.Conv2d(3, 1, 3), "b": zoo.conv(8, 8)}, 8),
    "times the batch": zoo.Net(lambda m, x: m["a"](x) * len(x) / len(x), {"a": zoo.conv(3, 8)}, 8),
    "double constant": zoo.Net(lambda m, x: (m["a"](x) * torch.linspace(0, 1, 576, dtype=torch.float64).view(24, 24)).float(), {"a": zoo.conv(3, 8)}, 8),
    "reduced inside": zoo.Net(lambda m, x: m["a"](x.bfloat16()).float(), {"a": zoo.conv(3, 8).bfloat16()}, 8),
    "bits": zoo.Net(lambda m, x: m["a"](x).view(torch.int32).view(torch.float32).relu(), {"a": zoo.conv(3, 8)}, 8),
    "complex": zoo.Net(lambda m, x: torch.view_as_real(torch.view_as_complex(m["a"](x).view(len(x), 8, 24, 12, 2))).flatten(3), {"a": zoo.conv(3, 8)}, 8),
    "slice from before the start": zoo.Net(lambda m, x: F.relu(m["a"](x[:, :, -30:, -25:])), {"a": zoo.conv(3, 8)}, 8),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("blank", [False, True])
def test_odd_models_get_their_own_scores(name: str, blank: bool) -> None:
    """Whatever comes out on tiles, on whole maps or by the model itself, and for a blank image."""
    net, images = ODD[name].eval(), torch.rand(3, 3, 24, 24)
    if blank:
        images[0] = 0.5
    settings: dict[str, Any] = {"patch": 7, "stride": 5, "fill": FILL, "score": "logit"}
    expected = occlusion_scores(Looking(net), images, **settings)
    assert float(expected.abs().max()) > 1e-3
    # The weights, and with them the logits, may be anything: they come as test modules are imported.
    near = 1e-5 * max(1.0, float(net(images).abs().max()))
    for method in ("auto", "dense"):
        found = occlusion_scores(net, images, method=method, **settings)
        assert float((found - expected).abs().max()) <= near, method


def test_an_operator_of_another_library_is_not_atens() -> None:
    """Its name says nothing of what it does."""
    with torch.library._scoped_library("sdsgsm_test", "FRAGMENT") as library:
        library.define("relu(Tensor x) -> Tensor")
        library.impl("relu", lambda x: x.relu() + x.mean((2, 3), keepdim=True), "CPU")
        library.impl("relu", lambda x: torch.empty_like(x), "Meta")
        net = zoo.Net(lambda m, x: torch.ops.sdsgsm_test.relu(m["a"](x)), {"a": zoo.conv(3, 8)}, 8).eval()
        images = torch.rand(2, 3, 12, 12)
        found = occlusion_scores(net, images, score="logit")
        expected = occlusion_scores(Looking(net), images, score="logit")
    assert float((found - expected).abs().max()) <= 1e-5


def test_a_wrong_replay_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behaviour that depends on the device, as the trace's, is caught by a window of noise."""

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = convnet()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) * (2 if x.is_meta else 1)

    model, images = Odd(), torch.rand(2, 3, 16, 16)
    assert torch.equal(occlusion_scores(model, images), occlusion_scores(Looking(model.net), images))
    with pytest.raises(ValueError, match="the replayed logits are not the model's"):
        occlusion_scores(model, images, method="incremental")


def test_hooks_and_output_objects_are_part_of_the_model() -> None:
    net, images = zoo.residual().eval(), torch.rand(2, 3, 16, 16)
    hooked = copy.deepcopy(net)
    hooked.layers["a"].register_forward_hook(lambda m, x, y: y * 2 + 1)
    found = occlusion_scores(hooked, images, method="incremental", score="logit")
    assert torch.allclose(found, occlusion_scores(Looking(hooked), images, score="logit"), atol=1e-5)
    assert not torch.allclose(found, occlusion_scores(net, images, score="logit"), atol=1e-3)

    def wrapped(x: Tensor) -> object:
        return SimpleNamespace(logits=net(x), features=None)

    flat = zoo.Flat((16, 16)).eval()
    for model, bare in ((wrapped, net), (flat, flat), (flat.forward, flat)):
        found = occlusion_scores(model, images, method="incremental")
        assert torch.allclose(found, occlusion_scores(Looking(bare), images), atol=1e-5)


def test_a_trace_leaves_the_model_as_it_was() -> None:
    class Remembering(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = convnet()
            self.register_buffer("calls", torch.zeros(()))
            self.features: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.features = self.net[0](x)
            self.fresh = x
            return self.net[1:](self.features)

    model, images = Remembering().train(), torch.rand(2, 3, 16, 16)
    before = state(model)
    classifier = Classifier(model)
    with classifier.frozen():
        trace(classifier, images)
    assert same(state(model), before)
    assert model.features is None
    assert not hasattr(model, "fresh")
    found = occlusion_scores(model, images, method="incremental")
    assert same(state(model), before)
    assert model.features is not None
    assert not model.features.is_meta, "what stays is the last pass on data"
    assert torch.allclose(found, occlusion_scores(Looking(model), images), atol=1e-5)


class Hoarding(nn.Module):
    """Keeps what it computes wherever a module can."""

    def __init__(self) -> None:
        super().__init__()
        self.net = convnet()
        self.register_buffer("moving", torch.zeros(3))
        self.seen: list[Tensor] = []
        self.cache: dict[Any, Any] = {"means": {}}
        self.helper = SimpleNamespace(last=None)

    def forward(self, x: Tensor) -> Tensor:
        self.moving = 0.9 * self.moving + 0.1 * x.mean((0, 2, 3))
        self.seen.append(x)
        self.helper.last = x
        means = self.cache["means"]
        if x.shape not in means:
            means[x.shape] = torch.zeros_like(x[:1])
        return self.net(x + means[x.shape])


def test_a_trace_leaves_nothing_in_the_model() -> None:
    model, images = Hoarding().eval(), torch.rand(2, 3, 16, 16)
    found = occlusion_scores(model, images)
    kept = [model.moving, *model.seen, *model.cache["means"].values(), model.helper.last]
    assert kept
    assert not any(t.is_meta for t in kept)
    assert torch.allclose(found, occlusion_scores(Looking(model.net), images), atol=1e-5)
    for batch in BATCHES:
        assert model(torch.rand(batch, 3, 16, 16)).isfinite().all()


def test_a_module_without_length_is_a_module() -> None:
    class Empty(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(zoo.conv(3, 8), zoo.norm(8), nn.Flatten(), nn.Linear(512, 4))

        def __len__(self) -> int:
            return 0

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.net(x)
            return logits

    model, images = Empty().train(), torch.rand(2, 3, 8, 8)
    before = state(model)
    found = occlusion_scores(model, images)
    assert same(state(model), before)
    assert torch.allclose(found, occlusion_scores(Looking(model.net), images), atol=1e-5)
    net = zoo.residual().eval()  # compiled, it has a __len__ that raises
    compiled = torch.compile(net, backend="eager")
    assert torch.allclose(occlusion_scores(compiled, images), occlusion_scores(net, images), atol=1e-6)


def test_threads_with_models_of_their_own() -> None:
    """The trace sets how torch.compile behaves, for all threads at once, and sets it back."""
    stance = torch._dynamo.eval_frame._stance.stance
    models, images = [convnet() for _ in range(4)], torch.rand(1, 3, 16, 16)
    expected = [occlusion_scores(m, images) for m in models]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            found = list(pool.map(lambda m: occlusion_scores(m, images), models))
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert torch._dynamo.eval_frame._stance.stance == stance


def test_train_mode_functions_are_traced_as_they_run() -> None:
    """F.batch_norm with training=True mixes the images of a batch: no tiles, and no crash."""
    net = zoo.Net(lambda m, x: F.batch_norm(m["a"](x), None, None, training=True), {"a": zoo.conv(3, 8)}, 8)
    images = torch.rand(1, 3, 8, 8)
    graph = trace(Classifier(net.eval()), images)
    steps = lower(graph, images.dtype, images.device, "auto").steps
    assert [s.name for s in steps if s.tile is not None] == ["convolution"]
    assert occlusion_scores(net, images).isfinite().all()


@pytest.mark.parametrize("seed", range(30))
def test_reach_by_brute_force(seed: int) -> None:
    """The affected outputs of an interval are those that read one of its values."""
    draw = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=draw))

    reach = Reach(number(1, 6), number(1, 4), number(-2, 4), number(1, 4))
    size, out = number(6, 20), number(1, 12)
    reads = [
        {o * reach.stride - reach.padding + t * reach.dilation for t in range(reach.kernel)} for o in range(-3, out + 6)
    ]
    low = number(0, size)
    high = number(low, size)
    touched = [o - 3 for o, inputs in enumerate(reads) if inputs & set(range(low, high + 1))]
    first, last = reach.affected(low, high)
    for o in touched:
        assert first <= o <= last
    if reach.dilation == 1 and reach.stride <= reach.kernel and touched:
        assert (max(first, -3), min(last, out + 5)) == (touched[0], touched[-1])
    start, count = reach.needed(2, 3)
    inputs = set().union(*reads[5:8])
    assert (start, start + count - 1) == (min(inputs), max(inputs))
    span = Span((low,), (high,), size).through(reach, out)
    inside = [o for o in touched if 0 <= o < out]
    if inside:
        assert span.low[0] <= inside[0]
        assert span.high[0] >= inside[-1]
    assert 0 <= span.start[0] <= span.start[0] + min(span.length, out) <= out


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("stride", "form"),
    [(1, "winograd"), *itertools.product((1, 2), ("product", "fused", "plain"))],
)
def test_every_form_of_a_convolution_is_conv2d(
    stride: int, bias: bool, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = nn.Conv2d(130, 33, 3, stride, (2, 1), (1, 1 if stride == 1 else 2), bias=bias)
    weight, shift = module.weight.detach(), module.bias.detach() if bias else None
    with_relu = Convolution(weight, shift, module.stride, module.padding, module.dilation, 1, relu=True)
    x = torch.randn(3, 130, 7, 8)
    monkeypatch.setattr(Layer, "form", lambda *_: form)
    for layout in (torch.contiguous_format, torch.channels_last):
        whole, tile = x.contiguous(memory_format=layout), F.pad(x[:, :, :5], (1, 1, 2, 2))
        for convolution, given, plain in (
            (with_relu, whole, module(whole)), (with_relu.on_tiles(), tile, module(x[:, :, :5]))
        ):  # fmt: skip
            layer = Layer(convolution, "auto")
            other = torch.randn_like(plain)
            for _ in range(2):  # the second time with the weights as the first has laid them out
                assert torch.allclose(layer(given), F.relu(plain), atol=1e-4)
                assert torch.allclose(layer(given, other), F.relu(plain + other), atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (1, 3)])
@pytest.mark.parametrize("relu", [False, True])
def test_pixels_are_products(
    dtype: torch.dtype, stride: tuple[int, int], relu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, bias = (torch.randn(33, 20, 1, 1) / 5).to(dtype), torch.randn(33).to(dtype)
    convolution = Convolution(weight, bias, stride, (0, 0), (1, 1), 1, relu=relu)
    x = torch.randn(3, 20, 7, 8).to(dtype)
    plain = F.conv2d(x.double(), weight.double(), bias.double(), stride)
    other = torch.randn(plain.shape).to(dtype)
    layer, near = Layer(convolution, "auto"), 1e-5 if dtype == torch.float32 else 0.05
    there = dtype == torch.float32 or onednn_in_bfloat16()
    assert layer.form(7, 8) == ("linear" if there else "plain")
    assert layer.scratch(4, 4) == (20 * 16 if there and stride != (1, 1) else 0)
    for fused in {there, False}:  # oneDNN's convolutions, which take in a sum
        monkeypatch.setattr(layers, "onednn_runs", lambda _, fused=fused: fused)
        for given in (x, x.contiguous(memory_format=torch.channels_last), x[:1]):
            for added in (None, other[: len(given)]):
                expected = plain[: len(given)] if added is None else plain[: len(given)] + added
                found = layer(given, added)
                if added is None and there:
                    assert found.is_contiguous(memory_format=torch.channels_last)
                expected = expected.relu() if relu else expected
                assert float((found - expected).abs().max()) < near


def test_which_form_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    def layer(outputs: int, inputs: int, kernel: int = 3, stride: int = 1, **rest: Any) -> Layer:
        options: dict[str, Any] = {"dilation": (1, 1), "groups": 1, "backend": "auto"} | rest
        weight = torch.rand(outputs, inputs // options["groups"], kernel, kernel)
        return Layer(
            Convolution(
                weight.to(rest.get("dtype", torch.float32)), None, (stride, stride), (1, 1),
                options["dilation"], options["groups"],
            ),
            options["backend"],
        )  # fmt: skip

    assert layer(64, 64).form(8, 9) == "winograd"
    assert layer(64, 64, backend="native").form(8, 9) == "winograd"
    assert layer(512, 512).form(3, 3) == "winograd"
    assert layer(512, 512).form(1, 3) == "product", "of one row it saves nothing"
    assert layer(512, 512, stride=2).form(4, 4) == "winograd"
    assert layer(512, 512, stride=2).form(5, 5) == "winograd"
    assert layer(512, 512, stride=2).form(2, 2) == "product", "25 products where it has 36"
    assert layer(512, 512, stride=2).scratch(2, 2) == 512 * 9 * 4
    assert layer(512, 512, stride=2).scratch(14, 14) == 0
    for other in (
        layer(64, 64, backend="reference"), layer(64, 64, stride=3), layer(64, 64, 5),
        layer(64, 64, dilation=(2, 2)), layer(64, 64, groups=2), layer(64, 16),
    ):  # fmt: skip
        assert other.form(8, 9) == "fused"
    fused = "fused" if onednn_in_bfloat16() else "plain"
    in_bfloat16 = "winograd" if native.winograd_in_bfloat16() else fused
    assert layer(64, 64, dtype=torch.bfloat16).form(8, 9) == in_bfloat16
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    assert layer(64, 64, dtype=torch.bfloat16).form(8, 9) == fused, "AMX is faster"
    assert layer(64, 64, dtype=torch.float64).form(8, 9) == "plain"


def test_modes_around_the_call_change_nothing() -> None:
    method = "incremental"
    net, images = zoo.residual().eval(), torch.rand(2, 3, 16, 16)
    expected = occlusion_scores(net, images, method=method, score="logit")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(occlusion_scores(net, images, method=method, score="logit"), expected)
    with torch.inference_mode():
        found = occlusion_scores(net, images.clone(), method=method, score="logit")
    assert torch.equal(found, expected)
    with torch.backends.mkldnn.flags(enabled=False), torch.autocast("cpu", dtype=torch.bfloat16):
        found = occlusion_scores(net, images, method=method, score="logit")
    assert torch.allclose(found, expected, atol=1e-5)


def test_the_check_on_one_image_does_not_size_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs a single window; parts that it left behind once had chunks for no more."""
    sizes: list[int] = []
    own = PlanRunner.logits

    def watched(self: PlanRunner, clean: Any, image: Tensor, row: Tensor, col: Tensor) -> Tensor:
        sizes.append(len(image))
        return own(self, clean, image, row, col)

    monkeypatch.setattr(PlanRunner, "logits", watched)
    monkeypatch.setattr(replay, "PART_COST", 0.0)  # windows near the border run apart
    occlusion_scores(zoo.residual().eval(), torch.rand(64, 3, 32, 32), method="incremental")
    assert sizes[0] == 1, "the check"
    assert sum(sizes[1:]) == 64 * 64
    assert min(sizes[1:]) >= replay.CPU_CHUNK[0]
    assert max(sizes) <= replay.CPU_CHUNK[1]


@pytest.mark.parametrize("kind", zoo.TRANSFORMERS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_transformers_run_as_traced(kind: str, precision: str) -> None:
    """Nothing of them is incremental, but their products are faster so."""

    class Watched(zoo.Transformer):
        def forward(self, x: Tensor) -> Tensor:
            self.seen.append(len(x))
            return super().forward(x)

    model, images = Watched(kind).eval(), torch.rand(3, 3, 16, 20)
    model.seen = []
    found = occlusion_scores(model, images, precision=precision, score="logit")
    assert model.seen == [3, 1], "clean images and the check"
    expected = occlusion_scores(Looking(model), images, score="logit")
    assert float(expected.abs().max()) > 1e-3
    near = 1e-5 if precision == "float32" else 0.05
    size = max(1.0, float(model(images).detach().abs().max()))
    assert float((found - expected).abs().max()) <= near * size
