"""TF32, in which CUDA computes float32 by default: what is compared without it, and what it may decide.

A CPU has none, so the flags and the verdicts are looked at as if a GPU were there; test_gpu.py has the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import zoo
from nets import predicted

from sdsgsm_fast import BIM, occlusion_scores
from sdsgsm_fast.engine import surrogate, window_runner
from sdsgsm_fast.model import precision
from sdsgsm_fast.occlusion import scoring

CUDA = torch.device("cuda")


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that claims to compute in TF32."""
    monkeypatch.setattr(precision, "uses_tf32", lambda device: True)
    monkeypatch.setattr(scoring, "uses_tf32", lambda device: True)


@pytest.fixture
def conv_flag() -> Iterator[Any]:
    flag = torch.backends.cudnn.conv
    before = flag.fp32_precision
    yield flag
    flag.fp32_precision = before


def test_it_is_on_for_convolutions_by_default_and_off_inside(hopper: None, conv_flag: Any) -> None:
    conv_flag.fp32_precision = "tf32"
    assert precision.uses_tf32(CUDA)
    seen = []

    def fails() -> None:
        with precision.without_tf32(CUDA):
            seen.append(precision.uses_tf32(CUDA))
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert seen == [False]
    assert conv_flag.fp32_precision == "tf32"
    assert torch.backends.cuda.matmul.fp32_precision == "none"


def test_what_is_off_stays_as_it_is(hopper: None, conv_flag: Any) -> None:
    conv_flag.fp32_precision = "ieee"
    assert not precision.uses_tf32(CUDA)
    with precision.without_tf32(CUDA):
        assert conv_flag.fp32_precision == "ieee"
    assert conv_flag.fp32_precision == "ieee"


def test_older_pytorch_has_other_flags(hopper: None, monkeypatch: pytest.MonkeyPatch) -> None:
    cudnn, matmul = SimpleNamespace(allow_tf32=True), SimpleNamespace(allow_tf32=False)
    backends = SimpleNamespace(cudnn=cudnn, cuda=SimpleNamespace(matmul=matmul))
    monkeypatch.setattr(precision.torch, "backends", backends)
    assert precision.uses_tf32(CUDA)
    with precision.without_tf32(CUDA):
        assert not cudnn.allow_tf32
    assert cudnn.allow_tf32
    assert not matmul.allow_tf32


def test_a_cpu_has_none() -> None:
    assert not precision.uses_tf32(torch.device("cpu"))


def test_verdicts_leave_room_for_it(everywhere: None) -> None:
    device = torch.device("cpu")
    assert precision.verdict_rounding(torch.float32, device) == precision.TF32_ROUNDING
    assert precision.verdict_rounding(torch.float64, device) < 1e-9
    assert precision.verdict_rounding(torch.bfloat16, device) == 0.1


def test_an_attack_asks_the_model_where_it_could_decide(everywhere: None) -> None:
    net, images = zoo.residual().eval(), torch.rand(16, 3, 16, 16)
    labels = predicted(net, images)
    attack = BIM(net, eps=6 / 255, steps=8)
    result = attack.run(images, labels)
    assert attack.classifier.surrogate is not None
    strict = attack.classifier.surrogate.strict or attack.classifier.surrogate
    assert strict.uncertainty == precision.TF32_ROUNDING
    assert torch.equal(result.success, predicted(net, result.adv) != labels)


def test_scores_compare_what_one_model_computed(everywhere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits before and after come from the traced model, whose rounding is then in neither score."""
    net, images = zoo.residual().eval(), torch.rand(5, 3, 16, 16)
    settings = {"patch": 4, "score": "logit", "precision": "float32"}
    expected = occlusion_scores(net, images, **settings)
    original, off = window_runner.Network.run, 1e-3

    def rounded(self: Any, inputs: torch.Tensor, wanted: set[int]) -> Any:
        found = original(self, inputs, wanted)
        return {k: v + off if k == self.output else v for k, v in found.items()}

    logits = window_runner.PlanRunner.logits
    monkeypatch.setattr(window_runner.Network, "run", rounded)
    monkeypatch.setattr(window_runner.PlanRunner, "logits", lambda *given: logits(*given) + off)
    monkeypatch.setattr(window_runner, "logits_agree", lambda *_: True)
    for method in ("incremental", "dense"):
        found = occlusion_scores(net, images, method=method, **settings)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_noise_is_compared_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.device] = []
    original = precision.without_tf32

    def watched(device: torch.device) -> Any:
        seen.append(device)
        return original(device)

    monkeypatch.setattr(surrogate, "without_tf32", watched)
    monkeypatch.setattr(window_runner, "without_tf32", watched)
    net, images = zoo.plain().eval(), torch.rand(3, 3, 16, 16)
    BIM(net, steps=4).run(images, predicted(net, images))
    occlusion_scores(net, images, patch=4)
    assert seen == [images.device] * 2
