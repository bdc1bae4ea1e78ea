"""cuDNN's fused convolutions, put in a GPU's place: when they are used, and what happens where they refuse."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import zoo
from nets import predicted
from torch import Tensor

from sdsgsm_fast import BIM, occlusion_scores
from sdsgsm_fast.engine import cudnn, layer
from sdsgsm_fast.engine.convolution import Convolution


class Fake:
    """cuDNN's two functions by separate operations, which may refuse a kind of convolution."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.refuses: Any = lambda x, weight: False

    def run(self, name: str, x: Tensor, c: Convolution, other: Tensor | None) -> Tensor:
        self.calls.append(name)
        if self.refuses(x, c.weight):
            raise RuntimeError("FIND was unable to find an engine to execute this computation")
        y = F.conv2d(x, c.weight, c.bias, c.stride, c.padding, c.dilation, c.groups)
        return (y if other is None else y + other).relu()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    found = Fake()
    monkeypatch.setattr(cudnn, "cudnn_runs", lambda c: c.relu)
    monkeypatch.setattr(cudnn, "_run", lambda x, c, other: found.run("relu" if other is None else "add", x, c, other))
    monkeypatch.setattr(cudnn, "_refused", set())
    monkeypatch.setattr(layer, "takes_winograd", lambda convolution, backend: False)
    monkeypatch.setattr(layer, "linear_of", lambda convolution: None)
    return found


def test_a_search_and_maps_use_them(fake: Fake) -> None:
    net, images = zoo.residual().eval(), torch.rand(6, 3, 16, 16)
    labels = predicted(net, images)
    expected = BIM(net, eps=0.02, steps=6, precision="float32").run(images, labels)
    found = BIM(net, eps=0.02, steps=6).run(images, labels)
    assert {"relu", "add"} <= set(fake.calls)
    assert torch.equal(found.success, expected.success)
    assert (found.adv - expected.adv).abs().mean() < 1e-4
    fake.calls.clear()
    scores = occlusion_scores(net, images, patch=4, score="logit", precision="float32")
    assert fake.calls
    dense = occlusion_scores(lambda x: net(x), images, patch=4, score="logit", precision="float32", method="dense")
    torch.testing.assert_close(scores, dense, atol=1e-4, rtol=0)


def test_what_they_refuse_is_asked_once(fake: Fake) -> None:
    fake.refuses = lambda x, weight: weight.shape[0] == 12
    net, images = zoo.residual().eval(), torch.rand(4, 3, 16, 16)
    BIM(net, eps=0.02, steps=6).run(images, predicted(net, images))
    kinds = {shapes[1:] for shapes, *_ in cudnn._refused}
    assert len(kinds) == 2, "the kinds of layers of twelve channels that end in a ReLU"
    assert fake.calls.count("relu") > 3


def test_a_shortage_of_memory_is_the_callers(fake: Fake) -> None:
    def short(x: Tensor, weight: Tensor) -> bool:
        raise torch.OutOfMemoryError("CUDA out of memory")

    fake.refuses = short
    c = Convolution(torch.randn(4, 3, 3, 3), None, (1, 1), (1, 1), (1, 1), 1, relu=True)
    with pytest.raises(torch.OutOfMemoryError):
        cudnn.fused(torch.randn(1, 3, 8, 8), c, None)
    assert not cudnn._refused


def test_they_are_tried_before_they_are_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cpu")
    right = Fake()
    monkeypatch.setattr(cudnn, "_run", lambda x, c, other: right.run("", x, c, other))
    assert cudnn._agrees.__wrapped__(torch.float32, device, False)
    monkeypatch.setattr(cudnn, "_run", lambda x, c, other: right.run("", x, c, other) * 1.01)
    assert not cudnn._agrees.__wrapped__(torch.float32, device, False)
    monkeypatch.undo()
    assert not cudnn._agrees.__wrapped__(torch.float32, device, False), "a CPU has none"
