"""Recorded passes: sizes, padding and what happens where nothing can be recorded.

A recording here keeps fixed memory and runs on it, as a CUDA graph does; test_gpu.py has real ones.
"""

from __future__ import annotations

import gc
import warnings
import weakref
from typing import Any

import pytest
import torch
import zoo
from torch import Tensor

from sdsgsm_fast import BIM, SDSGSM, MinimalSDSGSM, SmoothingOnly
from sdsgsm_fast.engine import graphs as capture
from sdsgsm_fast.engine.graphs import LARGEST, BatchFunction, GraphedFunction, rounded

EPS = 6 / 255


class Recording:
    """Runs again on the memory that it was made with, and hands out copies."""

    made: list[int]

    def __init__(self, function: BatchFunction, inputs: tuple[Tensor, ...]) -> None:
        self.function, self.inputs = function, tuple(x.clone() for x in inputs)
        self.outputs = function(*self.inputs)
        self.made.append(len(inputs[0]))

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        rows = len(inputs[0])
        for held, given in zip(self.inputs, inputs, strict=True):
            assert held.shape[1:] == given.shape[1:]
            held[:rows] = given
        for held, new in zip(self.outputs, self.function(*self.inputs), strict=True):
            held.copy_(new)
        return tuple(out[:rows].clone() for out in self.outputs)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes that were recorded, on a CPU that pretends it can."""
    monkeypatch.setattr(Recording, "made", [], raising=False)
    monkeypatch.setattr(capture, "CudaGraphs", lambda: Recording)
    for module in ("attack", "search"):
        monkeypatch.setattr(f"sdsgsm_fast.{module}.can_be_recorded", lambda images: True)
    return Recording.made


def twice(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return 2 * x, x.sum(1) + y


def test_sizes_grow_by_half_at_most() -> None:
    sizes = sorted({rounded(rows) for rows in range(1, 2000)})
    assert sizes[:7] == [8, 12, 16, 24, 32, 48, 64]
    assert all(rows <= rounded(rows) <= max(8, 1.5 * rows) for rows in range(1, 2000))


def test_each_size_is_recorded_once_and_results_are_those_of_the_rows(made: list[int]) -> None:
    captured = GraphedFunction(twice)
    kept = []
    for rows in (5, 8, 13, 3, 16, 11, 9):
        x, y = torch.randn(rows, 4), torch.randn(rows)
        kept.append((captured(x, y), twice(x, y)))
    assert made == [8, 16, 12]
    for found, expected in kept:  # each in memory of its own
        torch.testing.assert_close(found, expected)


def test_unasked_the_largest_batch_so_far_is_recorded_for_all(made: list[int]) -> None:
    captured = GraphedFunction(twice, patience=3, largest=48)
    sizes = [5, 20, 13, 9, 16, 30, 60, 31, 33, 9, 32]
    expected = [[], [], [], [24], [24], [24], [24], [24], [24], [24], [24, 48]]
    for rows, recorded in zip([*sizes, 40, 48], [*expected, [24, 48], [24, 48]], strict=True):
        x, y = torch.randn(rows, 4), torch.randn(rows)
        torch.testing.assert_close(captured(x, y), twice(x, y))
        assert made == recorded, rows


def test_unasked_a_failure_is_no_cause_for_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    def fails(function: BatchFunction, inputs: tuple[Tensor, ...]) -> BatchFunction:
        raise RuntimeError("operation not permitted when stream is capturing")

    captured = GraphedFunction(twice, fails, patience=1)
    x, y = torch.randn(5, 4), torch.randn(5)
    with warnings.catch_warnings(), caplog.at_level("INFO", "sdsgsm_fast"):
        warnings.simplefilter("error")
        for _ in range(3):
            torch.testing.assert_close(captured(x, y), twice(x, y))
    assert caplog.text.count("not recorded as a CUDA graph: operation not permitted") == 1


def test_small_models_are_worth_recording_and_large_batches_are_not() -> None:
    assert capture.rows_worth_recording(12, 1e6) == LARGEST
    assert 60 < capture.rows_worth_recording(20, 1e9) < 70
    assert capture.rows_worth_recording(20, 1e12) == 0


@pytest.mark.parametrize("kind", [BIM, SDSGSM, MinimalSDSGSM])
def test_by_default_an_attack_is_the_same(kind: Any, made: list[int]) -> None:
    net, images = zoo.residual().eval(), torch.rand(21, 3, 16, 16)
    labels = net(images).argmax(1)
    settings = {"eps": EPS, "steps": 8, "batch_size": 16}
    expected = kind(net, cuda_graphs=False, **settings).run(images, labels)
    assert not made
    attack = kind(net, **settings)
    for _ in range(2):
        found = attack.run(images, labels)
        assert torch.equal(found.updates, expected.updates)
        torch.testing.assert_close(found.adv, expected.adv, atol=1e-6, rtol=0)
    assert made == ([] if kind is MinimalSDSGSM else [16])


def test_a_large_batch_runs_as_it_is(made: list[int]) -> None:
    x, y = torch.randn(LARGEST + 1, 4), torch.randn(LARGEST + 1)
    torch.testing.assert_close(GraphedFunction(twice)(x, y), twice(x, y))
    assert not made


def test_what_cannot_be_recorded_runs_as_it_is_and_says_so_once() -> None:
    calls = []

    def fails(function: BatchFunction, inputs: tuple[Tensor, ...]) -> BatchFunction:
        calls.append(len(inputs[0]))
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    captured = GraphedFunction(twice, fails)
    x, y = torch.randn(5, 4), torch.randn(5)
    with pytest.warns(UserWarning, match="not used, operation not permitted"):
        torch.testing.assert_close(captured(x, y), twice(x, y))
    x, y = torch.randn(20, 4), torch.randn(20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(captured(x, y), twice(x, y))
    assert calls == [8], "once something has failed nothing more is tried"


def test_a_replay_that_differs_is_not_used() -> None:
    def wrong(function: BatchFunction, inputs: tuple[Tensor, ...]) -> BatchFunction:
        return lambda x, y: (2.2 * x, x.sum(1) + y)

    x, y = torch.randn(5, 4), torch.randn(5)
    with pytest.warns(UserWarning, match="differs"):
        torch.testing.assert_close(GraphedFunction(twice, wrong)(x, y), twice(x, y))


def test_a_replay_of_old_results_is_not_used() -> None:
    def frozen(function: BatchFunction, inputs: tuple[Tensor, ...]) -> BatchFunction:
        kept = function(*inputs)
        return lambda x, y: tuple(out[: len(x)] for out in kept)

    x, y = torch.randn(8, 4), torch.randn(8)
    with pytest.warns(UserWarning, match="differs"):
        torch.testing.assert_close(GraphedFunction(twice, frozen)(x, y), twice(x, y))


def test_what_waits_for_the_device_is_found_before_a_recording_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    mode = [0]
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: mode[0])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda m: mode.__setitem__(0, m))

    def reads(x: Tensor) -> tuple[Tensor, ...]:
        if mode[0] == "warn":  # as PyTorch does
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        return (x,)

    x = torch.randn(5, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert capture.waits_for_device(reads, (x,))
        assert not capture.waits_for_device(lambda x: (2 * x,), (x,))
    assert mode == [0]


@pytest.mark.parametrize("kind", [BIM, SDSGSM, SmoothingOnly])
@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
def test_an_attack_is_the_same(kind: Any, loss: str, made: list[int]) -> None:
    net, images = zoo.residual().eval(), torch.rand(21, 3, 16, 16)
    labels = net(images).argmax(1)
    settings = {"eps": EPS, "steps": 8, "loss": loss, "batch_size": 16}
    expected = kind(net, cuda_graphs=False, **settings).run(images, labels)
    attack = kind(net, cuda_graphs=True, **settings)
    for _ in range(2):
        found = attack.run(images, labels)
        assert torch.equal(found.success, expected.success)
        assert torch.equal(found.updates, expected.updates)
        assert torch.equal(found.passes.forward, expected.passes.forward)
        assert torch.equal(found.passes.backward, expected.passes.backward)
        torch.testing.assert_close(found.adv, expected.adv, atol=1e-6, rtol=0)
    assert made
    assert len(set(made)) == len(made), "recorded once for both runs"


def test_a_targeted_attack_is_the_same(made: list[int]) -> None:
    net, images = zoo.residual().eval(), torch.rand(9, 3, 16, 16)
    labels = net(images).argmax(1)
    target = (labels + 1) % net(images).shape[1]
    expected = BIM(net, eps=EPS, steps=6, cuda_graphs=False).run(images, labels, target=target)
    attack = BIM(net, eps=EPS, steps=6, cuda_graphs=True)
    attack.run(images, labels)
    found = attack.run(images, labels, target=target)
    assert torch.equal(found.updates, expected.updates)
    torch.testing.assert_close(found.adv, expected.adv, atol=1e-6, rtol=0)
    assert made


def test_a_changed_model_is_recorded_again(made: list[int]) -> None:
    net, images = zoo.residual().eval(), torch.rand(8, 3, 16, 16)
    labels = net(images).argmax(1)
    attack = BIM(net, eps=EPS, steps=6, cuda_graphs=True, early_stop=False)
    attack.run(images, labels)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(1.1)
    found = attack.run(images, net(images).argmax(1))
    expected = BIM(net, eps=EPS, steps=6, early_stop=False, cuda_graphs=False).run(images, net(images).argmax(1))
    torch.testing.assert_close(found.adv, expected.adv, atol=1e-6, rtol=0)
    assert made == [8, 8]


def test_another_loss_is_recorded_again(made: list[int]) -> None:
    net, images = zoo.residual().eval(), torch.rand(8, 3, 16, 16)
    labels = net(images).argmax(1)
    attack = BIM(net, eps=EPS, steps=6, cuda_graphs=True, early_stop=False)
    attack.run(images, labels)
    attack.loss = "margin"
    found = attack.run(images, labels)
    expected = BIM(net, eps=EPS, steps=6, early_stop=False, loss="margin", cuda_graphs=False).run(images, labels)
    torch.testing.assert_close(found.adv, expected.adv, atol=1e-6, rtol=0)
    assert made == [8, 8]


@pytest.mark.parametrize("setting", ["mean", "std"])
def test_other_constants_are_recorded_again(setting: str, made: list[int]) -> None:
    net, images = zoo.residual().eval(), torch.rand(8, 3, 16, 16)
    labels = net(images).argmax(1)
    attack = BIM(net, eps=EPS, steps=6, cuda_graphs=True, early_stop=False)
    attack.run(images, labels)
    first = attack.search.graphs_for(images, attack.loss)
    setattr(attack.classifier, setting, 0.5)
    attack.run(images, labels)
    assert attack.search.graphs_for(images, attack.loss) is not first
    assert made == [8, 8]


def test_a_shortage_of_memory_is_the_callers(made: list[int]) -> None:
    def short(function: BatchFunction, inputs: tuple[Tensor, ...]) -> BatchFunction:
        raise torch.OutOfMemoryError("CUDA out of memory")

    captured = GraphedFunction(twice, short)
    with pytest.raises(torch.OutOfMemoryError):
        captured(torch.randn(5, 4), torch.randn(5))
    assert not captured.failed


def test_recordings_go_with_their_attack_and_their_search(made: list[int]) -> None:
    net, images = zoo.residual().eval(), torch.rand(8, 3, 16, 16)
    labels = net(images).argmax(1)
    attack = BIM(net, eps=EPS, steps=6, cuda_graphs=True)
    attack.run(images, labels)
    captured = weakref.ref(attack.search.graphs_for(images, attack.loss))
    gc.disable()
    try:
        del attack
        assert captured() is None
    finally:
        gc.enable()
    attack = BIM(net, eps=EPS, steps=6, cuda_graphs=True)
    attack.run(images, labels)
    net.double()
    with pytest.warns(UserWarning, match="cuda_graphs: not used, the search is not by a traced"):
        attack.run(images.double(), labels)
    attack.run(images, labels)
    assert not attack.search._graphs


def test_images_on_a_cpu_are_refused() -> None:
    net = zoo.residual().eval()
    with pytest.raises(ValueError, match="cuda_graphs: expected images on a CUDA device"):
        BIM(net, cuda_graphs=True)(torch.rand(2, 3, 16, 16), torch.zeros(2, dtype=torch.int64))


def test_the_model_itself_is_not_recorded() -> None:
    with pytest.raises(ValueError, match="cuda_graphs: precision"):
        BIM(zoo.residual(), cuda_graphs=True, precision="float32")
