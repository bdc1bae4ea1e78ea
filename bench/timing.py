"""Interleaved timing: every round runs every candidate once, in a new order."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of one candidate: the median and the quartiles of its rounds."""

    median: float
    low: float
    high: float

    @property
    def spread(self) -> float:
        """Distance of the quartiles over the median."""
        return (self.high - self.low) / self.median


def interleaved(
    candidates: dict[str, Callable[[], object]], *, rounds: int, seed: int = 0
) -> dict[str, Timing]:
    """Time `candidates` in interleaved rounds after a warm-up of each.

    On a GPU each call is followed by a wait for the device.
    """
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for run in candidates.values():
        run()
        run()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    order = list(candidates)
    shuffle = random.Random(seed).shuffle
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            wait()
            start = time.perf_counter()
            candidates[name]()
            wait()
            seconds[name].append(time.perf_counter() - start)
    return {name: _summary(values) for name, values in seconds.items()}


def _summary(values: list[float]) -> Timing:
    low, median, high = statistics.quantiles(values, n=4)
    return Timing(median, low, high)
