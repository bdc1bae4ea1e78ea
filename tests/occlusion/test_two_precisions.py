"""Domains searched in bfloat16 are the float32 domains."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from nets import Looking, convnet, predicted
from torch import Tensor, nn

from sdsgsm_fast import SDSGSM, Occlusion, occlusion_map, ops
from sdsgsm_fast.common.windows import Windows
from sdsgsm_fast.data.photonet import MEAN, STD, load_photonet
from sdsgsm_fast.data.photos import photo_crops
from sdsgsm_fast.domains import UndecidedWindows
from sdsgsm_fast.model import precision
from sdsgsm_fast.model.precision import bfloat16_pays
from sdsgsm_fast.occlusion import scoring


def photos(count: int = 24) -> tuple[nn.Module, Tensor, dict[str, Any]]:
    images = photo_crops("test", -(-count // 10), seed=3)[0][:count]
    return load_photonet(), images, {"mean": MEAN, "std": STD}


@pytest.mark.usefixtures("bfloat16_pays")
@pytest.mark.parametrize("rule", ["top", "threshold"])
@pytest.mark.parametrize("settings", [{}, {"stride": 2}, {"coverage": 0.1, "score": "margin"}])
def test_the_search_ends_in_the_float32_domain(rule: str, settings: dict[str, Any]) -> None:
    net, images, normalisation = photos(32)
    labels = predicted(net, (images - 0.5) / 0.25)
    attack: dict[str, Any] = {"steps": 1, "domain": Occlusion(patch=4, rule=rule, **settings)}
    found, strict, rough = (
        SDSGSM(net, precision=precision, **normalisation, **attack).run(images, labels)
        for precision in ("auto", "float32", "bfloat16")
    )
    sensitivity_map = ops.window_mean(strict.scores, 32, 32, patch=4, stride=settings.get("stride", 4))
    cut = torch.where(strict.domain > 0, sensitivity_map, torch.inf).amin((1, 2), keepdim=True)
    tied = (sensitivity_map - cut).abs() < 1e-6  # float32 itself may put them on either side
    same = ((found.domain == strict.domain) | tied).double().mean()
    assert float(same) >= 0.999
    assert float((rough.domain == strict.domain).double().mean()) < float(same)
    windows = strict.scores[0].numel()
    assert strict.rescored is None
    assert found.rescored.shape == (len(images),)
    assert torch.all((found.rescored > 0) & (found.rescored <= windows))
    assert float(found.rescored.double().mean()) < 0.9 * windows, "the search saves something"
    spent = found.passes.forward - strict.passes.forward - found.rescored
    assert torch.all((spent >= 0) & (spent <= 3)), "clean maps in two precisions"


class Scaled(nn.Module):
    """The first classes of a network, times a factor, the first of them preferred."""

    def __init__(self, classes: int = 5, factor: float = 1.0, bias: float = 0.0) -> None:
        super().__init__()
        self.net, self.classes, self.factor = zoo.residual(), classes, factor
        self.register_buffer("bias", torch.zeros(classes))
        self.bias[0] = bias

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)[:, : self.classes] * self.factor + self.bias


def hard(kind: str, seed: int) -> tuple[nn.Module, Tensor]:
    """Models and images that mislead a search."""
    torch.manual_seed(seed)
    images = torch.rand(8, 3, 32, 32)
    if kind == "noise":  # nearly all that bfloat16 sees is its own
        return Scaled(2, 3.0).eval(), images
    if kind == "black":  # many windows change nothing, all alike
        images[:, :, :, 20:] = 0
    if kind == "sure":  # probabilities to which float32 itself gives few steps
        images = torch.nn.functional.interpolate(images[..., :8, :8], (32, 32), mode="bicubic")
        return Scaled(bias=20.0).eval(), images.clamp(0, 1)
    return Scaled(factor=1e4 if kind == "large" else 1.0).eval(), images


@pytest.mark.usefixtures("bfloat16_pays")
@pytest.mark.parametrize("kind", ["noise", "black", "sure", "large"])
@pytest.mark.parametrize(("score", "rule"), [("prob", "top"), ("log_prob", "threshold"), ("logit", "top")])
def test_hard_cases_end_in_the_float32_domain_too(kind: str, score: str, rule: str) -> None:
    off = []
    for seed, coverage in enumerate((0.25, 0.3, 0.4, 0.5)):
        model, images = hard(kind, seed)
        labels = (-model(images)).argmax(1) if kind == "large" else predicted(model, images)
        domain = Occlusion(patch=4, score=score, rule=rule, coverage=coverage)
        found, strict = (
            SDSGSM(model, steps=1, domain=domain, precision=precision).run(images, labels)
            for precision in ("auto", "float32")
        )
        off.append((found.domain != strict.domain).double().mean())
        size = strict.scores.flatten(1).abs().amax(1)
        near = (found.scores - strict.scores).flatten(1).abs().amax(1) <= 0.2 * size + 1e-2
        assert kind == "noise" or torch.all(near), "what was not scored again is no stranger"
    assert float(torch.stack(off).mean()) <= 0.001


@pytest.mark.usefixtures("bfloat16_pays")
@pytest.mark.parametrize("pays", [True, False])
def test_the_first_images_tell_whether_a_search_pays(pays: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "SURE_GAIN", 4.0)
    monkeypatch.setattr(scoring, "LEAST_WORK", 0.0)
    monkeypatch.setattr(scoring, "WORTHWHILE", 1.1 if pays else 0.0)
    net, images, normalisation = photos(24)
    labels = predicted(net, (images - 0.5) / 0.25)
    found, few, strict = (
        SDSGSM(net, steps=1, precision=precision, **normalisation).run(images[:n], labels[:n])
        for precision, n in (("auto", 24), ("auto", 15), ("float32", 24))
    )
    assert few.rescored is None, "too few to learn from"
    assert torch.all(found.rescored[: scoring.PROBE] > 0)
    assert torch.all((found.rescored[scoring.PROBE :] > 0) == pays)
    assert float((found.domain == strict.domain).double().mean()) >= 0.999
    if not pays:
        assert torch.equal(found.scores[scoring.PROBE :], strict.scores[scoring.PROBE :])
    spent = found.passes.forward - strict.passes.forward - found.rescored
    assert torch.all((spent >= 0) & (spent <= (3 if pays else 24)))


@pytest.mark.usefixtures("bfloat16_pays")
@pytest.mark.parametrize("rule", ["flip", "soft"])
def test_rules_without_a_cut_take_float32(rule: str) -> None:
    net, images, normalisation = photos(4)
    domain = Occlusion(rule=rule)
    labels = torch.zeros(4, dtype=torch.int64)
    result = SDSGSM(net, steps=1, domain=domain, **normalisation).run(images, labels)
    assert result.rescored is None


@pytest.mark.usefixtures("bfloat16_pays")
def test_models_without_a_trace_are_searched_too() -> None:
    net, images = convnet(spread=0.5), torch.rand(6, 3, 16, 16)
    labels = predicted(net, images)
    found = SDSGSM(Looking(net), steps=1).run(images, labels)
    strict = SDSGSM(Looking(net), steps=1, precision="float32").run(images, labels)
    assert found.rescored is not None
    assert float((found.domain == strict.domain).double().mean()) >= 0.999


def test_auto_notices_where_bfloat16_does_not_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    net, images = convnet(), torch.rand(4, 3, 16, 16)
    labels = predicted(net, images)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    monkeypatch.setattr(precision, "_is_amd", lambda: False)
    assert not bfloat16_pays(images.device)
    result = SDSGSM(net, steps=1).run(images, labels)
    strict = SDSGSM(net, steps=1, precision="float32").run(images, labels)
    assert result.rescored is None
    assert torch.equal(result.scores, strict.scores)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    assert bfloat16_pays(images.device)
    assert SDSGSM(net, steps=1).run(images, labels).rescored is not None
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    assert not bfloat16_pays(images.device)
    monkeypatch.setattr(precision, "_is_amd", lambda: True)
    for supported in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda s=supported: s)
        assert bfloat16_pays(images.device) == supported
        assert SDSGSM(net, steps=1).run(images, labels).rescored is None, "twice is not enough"


def test_maps_are_exact_by_default() -> None:
    net, images, normalisation = photos(4)
    exact = occlusion_map(net, images, precision="float32", **normalisation)
    assert torch.equal(occlusion_map(net, images, **normalisation), exact)
    reduced = occlusion_map(net, images, precision="bfloat16", **normalisation)
    assert not torch.equal(reduced, exact)
    assert float((reduced - exact).abs().max()) < 0.03


@pytest.mark.parametrize("rule", ["top", "threshold"])
@pytest.mark.parametrize("geometry", [((12, 12), 4, 4), ((13, 11), (5, 3), (2, 2))], ids=str)
def test_the_question_leaves_nothing_open(rule: str, geometry: Any) -> None:
    """However the scores in doubt move within it, the domain stays, if what is asked for is fixed."""
    size, patch, stride = geometry
    windows = Windows.over(*size, patch, stride)
    question = UndecidedWindows(windows, rule, 0.3, 0.5, "auto")
    scores = torch.randn(6, len(windows), dtype=torch.float64)
    doubt = torch.rand_like(scores) * 0.05

    def of(values: Tensor) -> Tensor:
        from sdsgsm_fast import decision_domain

        return decision_domain(question.sensitivity_map(values), rule=rule, coverage=0.3, threshold=0.5)

    asked = question(scores, doubt)
    assert 0 < float(asked.double().mean()) < 1
    while bool(asked.any()):  # fixing some may open or close others
        doubt = torch.where(asked, 0.0, doubt)
        asked = question(scores, doubt)
    expected = of(scores)
    for _ in range(50):
        moved = scores + (2 * torch.rand_like(scores) - 1) * doubt
        assert torch.equal(of(moved), expected)


MEMORY = """
import resource, sys, threading, time
import torch
sys.path.insert(0, {tests!r})
import zoo
from nets import Looking
from sdsgsm_fast import occlusion_scores

torch.set_num_threads(4 if {looking} else 1)  # four take eight copies a pass
net = zoo.residual().eval()
net = Looking(net) if {looking} else net
images = torch.rand(6, 3, 160, 160)
settings = dict(patch=16, method={method!r})
occlusion_scores(net, images[:1], **settings, max_memory=2**20)  # loads what is loaded once

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

def growth(limit):
    before, peak, stop = resident(), 0, False
    def watch():
        nonlocal peak
        while not stop:
            peak = max(peak, resident())
            time.sleep(0.0005)
    watcher = threading.Thread(target=watch); watcher.start()
    occlusion_scores(net, images, **settings, max_memory=limit)
    stop = True; watcher.join()
    return peak - before

print(growth({limit}), growth(None))
"""


@pytest.mark.parametrize(("method", "looking"), [("incremental", False), ("dense", False), ("dense", True)])
def test_the_memory_limit_holds(method: str, looking: bool) -> None:
    """The process grows by no more than the limit, a quarter for Python, and by more without."""
    limit = 16 * 2**20
    code = MEMORY.format(tests=str(Path(__file__).parents[1]), looking=looking, limit=limit,
                         method=method)  # fmt: skip
    hand_back = {"MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **hand_back},
    )
    assert done.returncode == 0, done.stderr
    limited, free = map(int, done.stdout.split())
    assert limited <= 1.25 * limit
    assert free > 1.25 * limited


def test_incremental_is_named_in_the_attack_too() -> None:
    images = torch.rand(2, 3, 16, 16)
    attack = SDSGSM(Looking(convnet()), steps=1, domain=Occlusion(method="incremental"))
    with pytest.raises(ValueError, match="method: 'incremental' cannot run this model"):
        attack(images, torch.zeros(2, dtype=torch.int64))
    exact = SDSGSM(zoo.plain().eval(), steps=1, domain=Occlusion(method="incremental"))
    assert exact(images, torch.zeros(2, dtype=torch.int64)).shape == images.shape
