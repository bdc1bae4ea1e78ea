"""What the host and a device tell each other: reads wait for the device, so there are few; writes do not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor


def to_host(values: Tensor) -> npt.NDArray[Any]:
    """Values as the host reads them, which waits for the device."""
    found: npt.NDArray[Any] = values.cpu().numpy()
    return found


def unequal(pairs: Sequence[tuple[Tensor, Tensor]]) -> list[bool]:
    """Which pairs of tensors of one shape, dtype and device differ; with one wait for each GPU."""
    found = [False] * len(pairs)
    waiting: dict[torch.device, list[int]] = {}
    for place, (a, b) in enumerate(pairs):
        if a.is_cuda:
            waiting.setdefault(a.device, []).append(place)
        else:
            found[place] = not torch.equal(a, b)
    for places in waiting.values():
        flags = to_host(torch.stack([(pairs[place][0] != pairs[place][1]).any() for place in places]))
        for place, flag in zip(places, flags.tolist(), strict=True):
            found[place] = flag
    return found


def to_device(values: npt.NDArray[Any], device: torch.device) -> Tensor:
    """What the host knows, on a device; by way of pinned memory, so that nobody waits for a GPU."""
    tensor = torch.from_numpy(values)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
