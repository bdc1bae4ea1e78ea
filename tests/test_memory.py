"""While something is computed the C library keeps its memory; afterwards it is as it was."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import pytest
import torch
from nets import convnet, predicted

from sdsgsm_fast import SDSGSM, memory, occlusion_map

HOLD = [(memory.MMAP_THRESHOLD, 32 * 2**20), (memory.TRIM_THRESHOLD, 2**31 - 1)]
LET_GO = [(memory.TRIM_THRESHOLD, 64 * 2**20)]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """What mallopt is told."""
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(memory, "_mallopt", lambda: lambda *call: seen.append(call))
    yield seen
    assert memory._inside == 0


def test_the_last_to_leave_lets_go(calls: list[tuple[int, int]]) -> None:
    with memory.held():
        with memory.held():
            assert calls == HOLD
        assert calls == HOLD
    assert calls == HOLD + LET_GO
    with pytest.raises(KeyError), memory.held():
        raise KeyError
    assert calls == 2 * (HOLD + LET_GO)


def test_attacks_and_maps_hold_it(calls: list[tuple[int, int]]) -> None:
    net, images = convnet(), torch.rand(4, 3, 16, 16)
    labels = predicted(net, images)
    occlusion_map(net, images)
    assert calls == HOLD + LET_GO
    calls.clear()
    SDSGSM(net, steps=2).run(images, labels)
    assert calls == HOLD + LET_GO
    calls.clear()
    for _ in SDSGSM(net, steps=2).stream([(images, labels)]):
        assert calls[-1:] == LET_GO, "between two results it is its owner's"
    with pytest.raises(ValueError, match="images"):
        occlusion_map(net, images + torch.nan)
    assert calls[-1:] == LET_GO


@pytest.mark.parametrize("name", memory.SETTINGS)
def test_settings_of_the_environment_stay(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    memory._mallopt.cache_clear()
    try:
        monkeypatch.setenv(name, "1")
        assert memory._mallopt() is None
        with memory.held():
            assert memory._inside == 0
    finally:
        monkeypatch.undo()
        memory._mallopt.cache_clear()


FAULTS = """
import resource, torch
from sdsgsm_fast import memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.zeros(2 * 2**20) for _ in range(30)]  # 8 MB each, and so beyond 64 together
    del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
with memory.held():
    warm = [faults() for _ in range(3)]  # the heap grows until all blocks have found a place
    print(sum(faults() for _ in range(5)))
"""


def test_pages_are_touched_once() -> None:
    clean = {k: v for k, v in os.environ.items() if k not in memory.SETTINGS}
    run = [sys.executable, "-c", textwrap.dedent(FAULTS)]
    done = subprocess.run(run, capture_output=True, text=True, check=True, env=clean)
    if platform.libc_ver()[0] == "glibc":  # where they are not held 200,000, or by chance none
        assert int(done.stdout) < 10_000
    else:
        assert memory._mallopt() is None
