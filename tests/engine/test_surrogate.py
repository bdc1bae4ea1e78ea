"""The surrogate: its gradients, when it is taken, and who has the last word."""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import zoo
from cpu import onednn_in_bfloat16
from nets import Looking, convnet, predicted
from torch import Tensor, nn

from sdsgsm_fast import BIM, FGSM, SDSGSM, SmoothingOnly, occlusion_map
from sdsgsm_fast.common.noise import noise_like
from sdsgsm_fast.engine import layer as layers
from sdsgsm_fast.engine import surrogate as searches
from sdsgsm_fast.engine.convolution import Convolution
from sdsgsm_fast.engine.layer import Layer
from sdsgsm_fast.engine.linear import ACTIVATIONS, Activation, Linear, runs
from sdsgsm_fast.engine.surrogate import Surrogate, prepare_surrogate
from sdsgsm_fast.engine.trace import JUMPS, TraceError, trace
from sdsgsm_fast.model.classifier import Classifier

CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "winograd": {"padding": (1, 1)},
    "winograd without border": {"padding": (0, 0)},
    "winograd with much border": {"padding": (2, 1)},
    "more border than reach": {"padding": (3, 3)},
    "stride": {"stride": (2, 1), "padding": (1, 0)},
    "dilation": {"dilation": (2, 1), "padding": (2, 2)},
    "groups": {"groups": 4},
    "pixels": {"kernel": 1},
    "every other pixel": {"kernel": 1, "stride": (2, 3)},
    "pixels and a border": {"kernel": 1, "padding": (1, 0)},
}  # fmt: skip


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gradients_of_a_layer(name: str, relu: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
    options |= CONVOLUTIONS[name]
    kernel: Any = options.pop("kernel", 3)
    weight = torch.randn(36, 40 // options["groups"], kernel, kernel, dtype=dtype) / 15
    bias = torch.randn(36, dtype=dtype)
    x = torch.randn(3, 40, 9, 7, dtype=dtype, requires_grad=True)
    plain = F.conv2d(x, weight, bias, **options)
    other = torch.randn_like(plain).requires_grad_()
    expected = (plain + other).relu() if relu else plain + other
    up = torch.randn_like(expected)
    own = torch.autograd.grad(expected, (x, other), up)
    layer = Layer(Convolution(weight, bias, *options.values(), relu=relu), "auto")
    assert layer.winograd == (name[:8] in ("winograd", "more bor") and dtype == torch.float32)
    assert (layer.linear is not None) == (name[-6:] in ("pixels", " pixel") and runs(weight[0, 0]))
    found = layer(x, other)
    assert torch.allclose(found, expected, atol=1e-5)
    for a, b in zip(torch.autograd.grad(found, (x, other), up), own, strict=True):
        near = 1e-12 if dtype == torch.float64 else 1e-4
        wrong = (a - b).abs() > near  # where rounding has decided a ReLU
        assert float(wrong.double().mean()) <= 0.001
    alone = torch.autograd.grad(layer(x), x, up)[0]
    kept = F.conv2d(x, weight, bias, **options)
    assert torch.allclose(alone, torch.autograd.grad(kept.relu() if relu else kept, x, up)[0], atol=1e-3)
    up[1] = 0  # an image whose gradient nobody asks for is not computed
    monkeypatch.setattr(layers, "WORTH_COPYING", 0)
    part = torch.autograd.grad(layer(x), x, up)[0]
    assert not part[1].any()
    assert torch.allclose(part[[0, 2]], alone[[0, 2]], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [*zoo.TILED, *zoo.MIXED])
@pytest.mark.parametrize("forced", [False, True], ids=["", "all by winograd"])
def test_logits_and_gradients_are_the_models(name: str, forced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if forced:
        monkeypatch.setattr(layers, "LEAST_CHANNELS", 1)
    net, images = (
        (zoo.TILED | zoo.MIXED)[name]().eval().requires_grad_(False),
        torch.rand(4, 3, 20, 24),
    )
    classifier = Classifier(net, mean=0.4, std=(0.2, 0.3, 0.25))
    search = Surrogate(classifier, images, torch.float32, "auto")
    assert not search.disagreement(classifier, images)
    logits, leaf = classifier.logits_and_leaf(images)
    classifier.surrogate = search
    found, mine = classifier.logits_and_leaf(images, search=True)
    assert float((found - logits).abs().max()) <= 1e-5 * max(1.0, float(logits.abs().max()))
    grads = [
        classifier.gradient(F.cross_entropy(z, z.argmax(1), reduction="none"), x)
        for z, x in ((logits, leaf), (found, mine))
    ]
    off = (grads[0] - grads[1]).flatten(1).norm(dim=1) / grads[0].flatten(1).norm(dim=1)
    assert float(off.median()) < 1e-4
    assert float(off.max()) < 0.02, "a ReLU or a maximum may fall to the other side"


@pytest.mark.parametrize("kind", zoo.TRANSFORMERS)
def test_transformers(kind: str) -> None:
    """Class tokens as long as the batch, attention called in three ways."""
    net, images = zoo.Transformer(kind).eval().requires_grad_(False), torch.rand(6, 3, 20, 24)
    classifier = Classifier(net)
    search = Surrogate(classifier, images, torch.float32, "auto")
    assert not search.disagreement(classifier, images)
    names = [step.name for step in search.network.steps]
    expected = {"encoder": 2, "by hand": 0, "direct": 1}[kind]
    assert names.count("scaled_dot_product_attention") == expected
    assert "gelu" not in names, "products take it in"
    for count in (1, 6):
        logits, leaf = classifier.logits_and_leaf(images[:count])
        classifier.surrogate = search
        found, mine = classifier.logits_and_leaf(images[:count], search=True)
        classifier.surrogate = None
        assert torch.allclose(found, logits, atol=1e-5)
        own, grad = (
            classifier.gradient(F.cross_entropy(z, z.argmax(1), reduction="none"), x)
            for z, x in ((logits, leaf), (found, mine))
        )
        assert float(own.norm()) > 1e-3
        assert float((grad - own).norm() / own.norm()) < 1e-4
    reduced = Surrogate(classifier, images, torch.bfloat16, "auto")
    assert not reduced.disagreement(classifier, images)
    assert reduced.network.dtype == torch.bfloat16


@pytest.mark.parametrize("activation", [Activation(), *ACTIVATIONS], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 1, 1), (7, 13, 5), (130, 31, 96)])
def test_products(activation: Activation, dtype: torch.dtype, rows: int, inputs: int, outputs: int) -> None:
    there = dtype == torch.float32 or onednn_in_bfloat16()
    assert runs(torch.ones(inputs, outputs, dtype=dtype)) == there
    if not there:
        return  # PyTorch's own product takes its place: test_transformers
    x = torch.randn(inputs, rows).t()  # not contiguous
    matrix = torch.randn(inputs, outputs) / inputs**0.5
    for bias in (torch.randn(outputs), None):
        given = x.clone().requires_grad_()
        plain = activation(given @ matrix + (0.0 if bias is None else bias))
        up = torch.randn_like(plain)
        (expected,) = torch.autograd.grad(plain, given, up)
        linear = Linear(matrix.to(dtype), None if bias is None else bias.to(dtype), activation)
        leaf = x.clone().requires_grad_()
        found = linear(leaf)
        (grad,) = torch.autograd.grad(found.float(), leaf, up)
        near = 1e-4 if dtype == torch.float32 else 0.06
        with torch.no_grad():
            fused = linear(x)
        assert found.dtype == fused.dtype == dtype
        assert grad.dtype == torch.float32
        for y in (found, fused):
            off = float((y - plain).detach().abs().max())
            assert off <= near * max(1.0, float(plain.detach().abs().max()))
        wrong = (grad - expected).abs() > near * max(1.0, float(expected.abs().max()))
        assert float(wrong.double().mean()) <= 0.02, "rounding may decide a ReLU"


def test_a_token_of_its_own_for_each_image_is_refused() -> None:
    class Numbered(zoo.Transformer):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.arange(len(x))[:, None].float()

    with pytest.raises(TraceError, match="depend on the batch size"):
        trace(Classifier(Numbered("direct").eval()), torch.rand(2, 3, 20, 24))


@pytest.mark.parametrize("most", [1, 8, 12, 64])
def test_what_depends_on_the_size_of_the_batch_is_refused(most: int) -> None:
    def split(m: nn.ModuleDict, x: Tensor) -> Tensor:
        return torch.cat([m["a"](part) for part in x.split(most)])

    def scaled(m: nn.ModuleDict, x: Tensor) -> Tensor:
        return m["a"](x * 2 if len(x) > max(most, 8) else x)

    for body in (split, scaled):
        net = zoo.Net(body, {"a": zoo.conv(3, 8)}, 8).eval()
        with pytest.raises(TraceError, match=r"batch size|depend on its size"):
            trace(Classifier(net), torch.rand(2, 3, 20, 24))


def test_attention_with_dropout_is_refused() -> None:
    def body(m: nn.ModuleDict, x: Tensor) -> Tensor:
        return m["a"](F.scaled_dot_product_attention(x, x, x, dropout_p=0.5))

    with pytest.raises(TraceError, match="scaled_dot_product_attention: draws random numbers"):
        trace(Classifier(zoo.Net(body, {"a": zoo.conv(3, 8)}, 8).eval()), torch.rand(2, 3, 20, 24))


def _autocast(m: nn.ModuleDict, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = F.scaled_dot_product_attention(x, x, x)
    return m["a"](mixed.float())


def _own_gradient(m: nn.ModuleDict, x: Tensor) -> Tensor:
    with torch.enable_grad():
        y = x.detach().requires_grad_()
        mixed = y + F.scaled_dot_product_attention(y, y, y)
        (grad,) = torch.autograd.grad(mixed.square().sum(), y)
    return m["a"](x + grad)


@pytest.mark.parametrize(
    ("body", "why"),
    [(_autocast, "autocast of the model's own"), (_own_gradient, "gradient of its own")],
)
def test_attention_that_would_not_be_the_models_is_refused(
    body: Callable[[nn.ModuleDict, Tensor], Tensor], why: str
) -> None:
    net = zoo.Net(body, {"a": zoo.conv(3, 8)}, 8).eval().requires_grad_(False)
    images = torch.rand(2, 3, 20, 24)
    with pytest.raises(TraceError, match=why):
        trace(Classifier(net), images)
    assert torch.equal(occlusion_map(net, images), occlusion_map(Looking(net), images))


def test_small_logits_are_checked_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trace that is wrong by 1 % of them is not taken, though that is little by itself."""
    net, images = zoo.residual().eval().requires_grad_(False), torch.rand(3, 3, 20, 24)
    with torch.no_grad():
        for p in net.head.parameters():
            p.mul_(1e-5)
    classifier = Classifier(net)
    assert float(net(images).abs().max()) < 1e-4
    assert prepare_surrogate(classifier, images, torch.float32, "auto", None) is not None
    own = Layer.forward
    monkeypatch.setattr(Layer, "forward", lambda *a: own(*a) * 1.01)
    assert prepare_surrogate(classifier, images, torch.float32, "auto", None) is None
    found = occlusion_map(net, images, score="logit")
    expected = occlusion_map(Looking(net), images, score="logit")
    assert float((found - expected).abs().max()) < 1e-5 * float(expected.abs().max())


def test_tracing_leaves_the_attention_of_others_alone() -> None:
    own = F.scaled_dot_product_attention
    net, images = zoo.Transformer("encoder").eval(), torch.rand(2, 3, 20, 24)
    layer = net.layers.layers[0].self_attn
    layer.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(TraceError, match="ZeroDivisionError"):
        trace(Classifier(net), images)
    assert F.scaled_dot_product_attention is own


def test_attention_of_somebody_elses_is_not_taken_for_pytorchs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v, **_: own(q * 9, k, v))
    net, images = zoo.Transformer("direct").eval().requires_grad_(False), torch.rand(5, 3, 20, 24)
    classifier = Classifier(net)
    search = prepare_surrogate(classifier, images, torch.float32, "auto", None)
    assert search is not None
    assert torch.allclose(search(classifier.inputs(images)), net(images), atol=1e-5)
    expected = net(images)
    monkeypatch.undo()
    assert not torch.allclose(net(images), expected, atol=1e-3), "it matters whose is called"


def test_attention_to_constant_keys() -> None:
    memory = torch.randn(2, 1, 6, 8)

    def body(m: nn.ModuleDict, x: Tensor) -> Tensor:
        x = m["a"](x)
        keys, values = (c.expand(len(x), -1, -1) for c in memory)
        mixed = F.scaled_dot_product_attention(x.flatten(2).transpose(1, 2), keys, values)
        return mixed.transpose(1, 2).unflatten(2, x.shape[2:])

    net, images = zoo.Net(body, {"a": zoo.conv(3, 8)}, 8).eval(), torch.rand(5, 3, 20, 24)
    search = prepare_surrogate(Classifier(net.requires_grad_(False)), images, torch.float32, "auto", None)
    assert search is not None
    assert torch.allclose(search(images), net(images), atol=1e-5)
    assert sum(step.work for step in search.network.steps if "attention" in step.name) > 0


class _Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * (1 + 1e-4)  # which no comparison of gradients would notice


def _hooked() -> nn.Module:
    net = nn.Sequential(nn.AdaptiveAvgPool2d(16), *convnet())
    net[1].register_full_backward_hook(lambda m, i, o: None)
    return net


def _halved() -> nn.Module:
    net = zoo.residual().eval()
    net.layers["a"].register_forward_hook(
        lambda m, x, y: y.register_hook(lambda g: g / 2) and None if y.requires_grad else None
    )
    return net


def _without_gradient(m: nn.ModuleDict, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = m["a"](x)
    return y + m["b"](x)


LEFT_ALONE: dict[str, Callable[[], nn.Module]] = {
    "looking": lambda: Looking(nn.Sequential(nn.AdaptiveAvgPool2d(16), convnet())),
    "function": lambda: zoo.Net(lambda m, x: _Twice.apply(m["a"](x)), {"a": zoo.conv(3, 8)}, 8),
    "backward hook": _hooked,
    "tensor hook": _halved,
    "no_grad": lambda: zoo.Net(_without_gradient, {"a": zoo.conv(3, 8), "b": zoo.conv(3, 8)}, 8),
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_whose_gradient_is_its_own_business_runs_itself(name: str) -> None:
    net, images = LEFT_ALONE[name]().eval(), torch.rand(3, 3, 20, 24)
    classifier = Classifier(net)
    with classifier.frozen():
        assert prepare_surrogate(classifier, images, torch.float32, "auto", None) is None
    labels = predicted(net, images)
    settings: dict[str, Any] = {"steps": 5, "early_stop": False}
    found = SmoothingOnly(net, **settings)(images, labels)
    assert torch.equal(found, SmoothingOnly(net, precision="float32", **settings)(images, labels))


def test_a_search_is_kept_while_the_weights_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    traces = []
    original = searches.trace
    monkeypatch.setattr(searches, "trace", lambda *a, **k: traces.append(1) or original(*a, **k))
    net, images = convnet(), torch.rand(4, 3, 16, 16)
    labels = predicted(net, images)
    attack = BIM(net, steps=4, early_stop=False)
    for _ in range(3):
        attack(images, labels)
    assert len(traces) == 1
    with torch.no_grad():
        net[0].weight.add_(0.3)
    changed = attack(images, labels)
    assert len(traces) == 2
    strict = BIM(net, steps=4, early_stop=False, precision="float32")(images, labels)
    assert float((changed - strict).abs().mean()) < 1e-5
    net[5] = nn.Tanh()  # no weight says so
    changed = attack(images, labels)
    strict = BIM(net, steps=4, early_stop=False, precision="float32")(images, labels)
    assert float((changed - strict).abs().mean()) < 1e-5
    assert len(traces) == 3, "but its logits for an image of noise do"
    FGSM(net)(images, labels)
    assert len(traces) == 3, "a single step is not worth a trace"


def test_the_models_verdict_is_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    net, images = convnet(), torch.rand(40, 3, 16, 16)
    labels = predicted(net, images)
    labels[5] = (labels[5] + 1) % 5
    strict = SDSGSM(net, precision="float32").run(images, labels)
    auto = SDSGSM(net).run(images, labels)
    assert torch.equal(auto.skipped, strict.skipped)
    assert torch.equal(auto.success, (predicted(net, auto.adv) != labels) & ~auto.skipped)
    assert (auto.updates != strict.updates).double().mean() <= 0.1
    # Where every verdict is in doubt the model is asked each time, and nothing else changes.
    monkeypatch.setattr(Surrogate, "uncertainty", torch.inf)
    asked = SDSGSM(net).run(images, labels)
    assert torch.equal(asked.adv, auto.adv)
    assert torch.equal(asked.updates, auto.updates)
    more = asked.passes.forward - auto.passes.forward
    assert torch.equal(more, auto.success.long() + (~auto.success & ~auto.skipped).long())


def test_passes_of_a_search_do_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the model itself is asked about some clean images."""
    monkeypatch.setattr(Surrogate, "uncertainty", 0.2)
    net, images = convnet(), torch.rand(12, 3, 16, 16)
    labels = predicted(net, images)
    attack = SmoothingOnly(net, steps=5)
    whole = attack.run(images, labels)
    assert len(set((whole.passes.forward - whole.updates).tolist())) > 1
    for i in range(12):
        alone = attack.run(images[i : i + 1], labels[i : i + 1])
        assert torch.equal(alone.passes.forward[0], whole.passes.forward[i])
        assert torch.equal(alone.passes.backward[0], whole.passes.backward[i])


def _clamped(net: nn.Module, images: Tensor) -> float:
    """The largest activation of an image of noise, below those of the images."""
    return float(net[0](noise_like(images)).max())


@pytest.mark.parametrize("how", ["module", "attribute", "hook", "forward", "data"])
def test_a_model_that_was_changed_is_traced_again(how: str) -> None:
    """Also where an image of noise does not show it."""

    class Limited(nn.Module):
        limit = 1e9

        def forward(self, x: Tensor) -> Tensor:
            return x.clamp(max=self.limit)

    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), Limited(), nn.Flatten(), nn.Linear(1568, 5))
    images = torch.rand(30, 3, 16, 16)
    images[:, :, ::2] *= torch.rand(30, 1, 1, 1) * 4
    images = images.clamp(0, 1)
    attack = BIM(net, eps=0.02, steps=5)
    attack(images, predicted(net, images))
    most = _clamped(net, images)
    if how == "module":
        net[2] = nn.Hardtanh(0, most)
    elif how == "attribute":
        net[2].limit = most
    elif how == "hook":
        net[2].register_forward_hook(lambda m, x, y: y.clamp(max=most))
    elif how == "forward":
        net[2].forward = lambda x: x.clamp(max=most)
    else:
        net[0].weight.data[2].neg_()
    labels = predicted(net, images)
    found = attack.run(images, labels)
    strict = BIM(net, eps=0.02, steps=5, precision="float32").run(images, labels)
    assert torch.equal(found.skipped, strict.skipped)
    assert torch.equal(found.success, predicted(net, found.adv) != labels)
    assert float((found.adv - strict.adv).abs().mean()) < 1e-5


CACHE: dict[int, Tensor] = {}


class Caching(nn.Module):
    """Keeps a tensor in a global, by the width of the images."""

    def __init__(self) -> None:
        super().__init__()
        self.net = convnet()
        self.grid: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        width = x.shape[-1]
        if width not in CACHE:
            CACHE[width] = torch.linspace(0, 0.01, width, device=x.device)
        if self.grid is None:
            self.grid = torch.linspace(0, 0.01, width, device=x.device)
        return self.net(x + CACHE[width] + self.grid)


@pytest.mark.parametrize("kind", ["module", "lambda", "partial", "method"])
def test_caches_outside_the_model_stay_clean(kind: str) -> None:
    CACHE.clear()
    net, images = Caching().eval(), torch.rand(3, 3, 16, 16)
    seen: dict[str, Tensor] = {}
    net.net[0].register_forward_hook(lambda m, x, y: seen.update(last=y))
    model = {
        "module": net, "lambda": lambda x: net(x), "partial": functools.partial(net),
        "method": net.forward,
    }[kind]  # fmt: skip
    labels = torch.zeros(3, dtype=torch.int64)
    found = BIM(model, steps=4)(images, labels)
    assert not any(t.is_meta for t in (*CACHE.values(), net.grid, *seen.values()))
    assert torch.allclose(found, BIM(model, steps=4, precision="float32")(images, labels), atol=0.02)
    assert net(images).isfinite().all()


def test_steps_and_gates_are_left_to_the_model() -> None:
    def gated(m: nn.ModuleDict, x: Tensor) -> Tensor:
        with torch.no_grad():
            gate = (x.mean((1, 2, 3)) - 0.75).relu()
        return m["a"](x) + gate[:, None, None, None]

    def guarded(m: nn.ModuleDict, x: Tensor) -> Tensor:
        if x.requires_grad:
            x = x + 0
            x.register_hook(torch.nan_to_num)
        return m["a"](x)

    def drawing(m: nn.ModuleDict, x: Tensor) -> Tensor:
        return m["a"](x.flip(3) if torch.rand(()) < 0.5 else x)

    images = torch.rand(3, 3, 16, 16)
    for body in (gated, guarded, drawing):
        classifier = Classifier(zoo.Net(body, {"a": zoo.conv(3, 8)}, 8).eval())
        with classifier.frozen():
            assert prepare_surrogate(classifier, images, torch.float32, "auto", None) is None


FLOATING_JUMPS: dict[str, Callable[[Tensor], Tensor]] = {
    name: getattr(torch, name) for name in ("round", "floor", "ceil", "trunc", "frac", "sign", "sgn", "angle")
} | {
    "heaviside": lambda x: torch.heaviside(x, torch.ones_like(x)),
    "fmod": lambda x: torch.fmod(x, 0.3),
    "remainder": lambda x: torch.remainder(x, 0.3),
    "floor_divide": lambda x: torch.floor_divide(x, 0.3),
    "threshold": lambda x: F.threshold(x, 0.5, 0.0),
    "hardshrink": F.hardshrink,
    "copysign": lambda x: torch.copysign(torch.ones_like(x), x),
    "atan2": lambda x: torch.atan2(x, -torch.ones_like(x)),
    "mode": lambda x: x.mode(dim=1, keepdim=True).values,
}


@pytest.mark.parametrize("name", sorted(JUMPS))
def test_every_floating_jump_is_noticed(name: str) -> None:
    def model(x: Tensor) -> Tensor:
        return (FLOATING_JUMPS[name](x) + x).mean((2, 3))

    graph = trace(Classifier(model), torch.rand(2, 3, 8, 8))
    assert graph.jump() == name


@pytest.mark.parametrize(
    "jump",
    [
        lambda x: (x > 0.5).float() + x,
        lambda x: x + ((x * 8).long() / 8 - x).detach() * 1.0,
        lambda x: F.threshold(x, 0.5, 0.0) + x,
        lambda x: F.hardshrink(x, 0.5) + x,
        lambda x: torch.div(x, 0.25, rounding_mode="floor") + x,
        lambda x: x + (x * 4).round(),
        lambda x: x * (1 + x.flatten(2).max(2).indices[:, :, None, None]),
        lambda x: torch.copysign(torch.ones_like(x), x - 0.5) + x,
        lambda x: torch.angle(x - 0.5) + x,
    ],
)
def test_a_verdict_after_a_jump_is_the_models(jump: Callable[[Tensor], Tensor]) -> None:
    net = zoo.Net(lambda m, x: m["b"](jump(m["a"](x))), {"a": zoo.conv(3, 8), "b": zoo.conv(8, 8)}, 8)
    images = torch.rand(3, 3, 16, 16)
    assert Surrogate(Classifier(net.eval()), images, torch.float32, "auto").uncertainty == torch.inf
    labels = predicted(net, images)
    found = occlusion_map(net, images, labels)
    assert torch.equal(found, occlusion_map(net, images, labels, backend="reference"))
    with pytest.raises(ValueError, match="a rounding error may become a step"):
        occlusion_map(net, images, labels, method="incremental")


@pytest.mark.parametrize("smooth", [F.relu, F.leaky_relu, torch.abs, F.silu, F.hardtanh])
def test_what_has_no_jump_is_searched_without_the_model(smooth: Callable[[Tensor], Tensor]) -> None:
    net = zoo.Net(
        lambda m, x: F.max_pool2d(smooth(m["a"](x)), 2, return_indices=True)[0],
        {"a": zoo.conv(3, 8)}, 8,
    )  # fmt: skip
    assert Surrogate(Classifier(net.eval()), torch.rand(3, 3, 16, 16), torch.float32, "auto").uncertainty < 1


def test_copies_of_an_attack_trace_for_themselves() -> None:
    images = torch.rand(3, 3, 16, 16)
    attack, labels = BIM(convnet(), steps=4), torch.zeros(3, dtype=torch.int64)
    result = attack.run(images, labels)
    assert torch.equal(copy.deepcopy(attack)(images, labels), result.adv)
    assert torch.equal(copy.deepcopy(result).adv, result.adv)
    assert pickle.dumps(attack), "what cannot be pickled raises"
    assert pickle.dumps(result)
    assert attack.classifier.surrogate is not None


def test_bfloat16_is_searched_by_the_trace_too() -> None:
    net, images = zoo.residual().eval(), torch.rand(16, 3, 16, 16)
    labels = predicted(net, images)
    attack = BIM(net, eps=0.1, precision="bfloat16")
    result = attack.run(images, labels)
    assert attack.classifier.surrogate is not None
    assert torch.equal(result.success, predicted(net, result.adv) != labels)
    strict = BIM(net, eps=0.1, precision="float32").run(images, labels)
    assert abs(int(result.success.sum()) - int(strict.success.sum())) <= 2
    assert not torch.equal(result.adv, strict.adv)


def test_a_compiled_model_is_a_model() -> None:
    """`torch.compile` makes a callable module like any other; its weights are the model's."""
    net, images = zoo.residual().eval(), torch.rand(6, 3, 16, 16)
    labels = net(images).argmax(1)
    compiled = torch.compile(net, backend="eager")
    expected = BIM(net, eps=6 / 255, steps=6).run(images, labels)
    found = BIM(compiled, eps=6 / 255, steps=6).run(images, labels)
    assert torch.equal(found.success, expected.success)
    assert torch.equal(found.updates, expected.updates)
    maps = [occlusion_map(model, images, labels, patch=4) for model in (net, compiled)]
    torch.testing.assert_close(*maps, atol=1e-5, rtol=0)
