"""How often a step waits for the device, counted on a CPU that a search takes for a GPU.

Counted are reads by `to_host` and the operations for which the host of a GPU waits: reading a number, and finding out how
many rows a mask has.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from nets import convnet, predicted
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sdsgsm_fast import BIM, MIFGSM, SDSGSM, MinimalSDSGSM, search
from sdsgsm_fast import loop as loops
from sdsgsm_fast.common import host
from sdsgsm_fast.loop import Loop
from sdsgsm_fast.model import classifier, memory

READS = {"_local_scalar_dense", "equal", "nonzero", "masked_select", "_unique2", "unique_consecutive"}
INDEXING = {"index", "index_put", "index_put_"}


class Waits(TorchDispatchMode):
    """Counts what a GPU's host would wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = name in INDEXING and any(t is not None and t.dtype == torch.bool for t in args[1])
        if name in READS or masks:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What each step waited for."""
    monkeypatch.setattr(search, "on_gpu", lambda images: True)
    monkeypatch.setattr(search, "bfloat16_pays", lambda device: False)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10**11)
    seen: list[list[str]] = []
    original, read = Loop.step, host.to_host

    def step(self: Loop) -> None:
        with Waits() as waits:
            seen.append(waits.found)
            original(self)

    def to_host(values: Tensor) -> Any:
        if seen:
            seen[-1].append("to_host")
        return read(values)

    monkeypatch.setattr(Loop, "step", step)
    for module in (loops, classifier):
        monkeypatch.setattr(module, "to_host", to_host)
    return seen


def problem() -> tuple[Any, Tensor, Tensor]:
    torch.manual_seed(0)
    net, images = convnet(spread=3.0), torch.rand(24, 3, 16, 16)
    return net, images, predicted(net, images)


@pytest.mark.parametrize("kind", [BIM, MIFGSM, SDSGSM])
@pytest.mark.parametrize("precision", ["auto", "bfloat16", "float32"])
def test_a_step_waits_once_and_for_verdicts_of_a_search_in_bfloat16(
    kind: Any, precision: str, steps: list[list[str]]
) -> None:
    net, images, labels = problem()
    result = kind(net, eps=4 / 255, steps=12, precision=precision).run(images, labels)
    assert result.success.any()
    # A search in bfloat16 asks for a verdict where it claims success, and the model itself where that is in doubt.
    most = 3 if precision == "bfloat16" else 1
    assert {tuple(found) for found in steps} <= {("to_host",) * count for count in range(1, most + 1)}


def test_refinement_waits_a_few_times_a_step(steps: list[list[str]]) -> None:
    net, images, labels = problem()
    MinimalSDSGSM(net, eps=16 / 255, levels=256).run(images, labels)
    assert max(len(found) for found in steps) <= 12
