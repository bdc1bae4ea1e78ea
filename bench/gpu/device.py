"""Time on a GPU: events around a replayed graph of calls, cold and hot, and what a call costs the host.

Without a GPU the same calls are timed by the clock, so that the benchmarks can be tried anywhere.
"""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

CALLS = 20  # of a graph
REPLAYS = 9
HOST_CALLS = 200
WARM_UPS = 3  # libraries and compilers choose and allocate before anything is recorded

Call = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Microseconds of one call: the median of the replays, and how far they lie apart."""

    median: float
    spread: float


def timed(calls: Sequence[Call]) -> Timing:
    """Microseconds of one call on the device, called in turn `CALLS` times a replay.

    Calls on memory of their own that together is far larger than the L2 cache are timed cold; one
    call, whose memory fits, is timed hot.
    """
    for call in calls:
        for _ in range(WARM_UPS):
            call()
    in_turn = [calls[i % len(calls)] for i in range(CALLS)]
    times = _replayed(in_turn) if torch.cuda.is_available() else _by_the_clock(in_turn)
    low, median, high = statistics.quantiles(times, n=4)
    return Timing(median, (high - low) / median)


def _replayed(calls: Sequence[Call]) -> list[float]:
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    torch.cuda.synchronize()
    times = []
    for _ in range(REPLAYS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(1e3 * start.elapsed_time(end) / len(calls))
    return times


def _by_the_clock(calls: Sequence[Call]) -> list[float]:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        for call in calls:
            call()
        times.append(1e6 * (time.perf_counter() - start) / len(calls))
    return times


def host_time(call: Call) -> float:
    """Microseconds that the host needs to issue a call, median of batches."""
    call()
    times = []
    for _ in range(5):
        wait()
        start = time.perf_counter()
        for _ in range(HOST_CALLS // 5):
            call()
        times.append(1e6 * (time.perf_counter() - start) / (HOST_CALLS // 5))
    return statistics.median(times)


def wait() -> None:
    """Let a GPU finish."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def l2_bytes() -> int:
    """Size of the L2 cache; 0 without a GPU."""
    if not torch.cuda.is_available():
        return 0
    return int(torch.cuda.get_device_properties(0).L2_cache_size)


def sets_for(one: int, limit: int = 12) -> int:
    """How many sets of tensors of so many bytes are timed in turn so that none is in L2."""
    return max(2, min(limit, -(-3 * l2_bytes() // max(one, 1))))


def environment() -> dict[str, Any]:
    """Versions, the device, and its clocks as they are now."""
    found: dict[str, Any] = {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    try:
        import triton

        found["triton"] = triton.__version__
    except ImportError:
        found["triton"] = None
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {"capability": f"{properties.major}.{properties.minor}", "multiprocessors":
                  properties.multi_processor_count, "memory": properties.total_memory, "l2": l2_bytes()}  # fmt: skip
    names = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.draw,power.limit,temperature.gpu"
    try:
        said = subprocess.run(
            ["nvidia-smi", f"--query-gpu={names}", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=20,
        ).stdout.split("\n")[0]  # fmt: skip
        found["nvidia-smi"] = dict(zip(names.split(","), (value.strip() for value in said.split(",")), strict=False))
    except (OSError, subprocess.SubprocessError):
        found["nvidia-smi"] = None
    return found
