"""Occlusion by full forward passes over zeroed-out copies, in chunks that fit the cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from .. import checks, ops
from ..classifier import Classifier
from ..windows import Windows

CPU_CHUNK = 64  # copies a forward pass: measured best on CPUs at 32 to 64 (one image's windows)
CUDA_CHUNK = 4096  # not measured
CUDA_SHARE = 0.5  # of the free memory, where no max_memory is given; not measured


def window_logits(
    classifier: Classifier,
    images: Tensor,
    windows: Windows,
    *,
    fill: checks.PerChannel,
    backend: str,
    max_memory: int | None,
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield (images, windows, logits): the slices of a chunk and its logits (b, w, K).

    On CUDA out-of-memory the chunk is halved and the work goes on.
    """
    chunk = chunk_size(classifier, images, max_memory)
    at, window = 0, 0
    while at < len(images):
        count = min(chunk, len(windows) - window)
        group = max(1, chunk // len(windows)) if window == 0 and count == len(windows) else 1
        rows = slice(at, min(at + group, len(images)))
        try:
            logits = _forward(
                classifier, images[rows], windows, window, count, fill=fill, backend=backend
            )
        except torch.OutOfMemoryError:
            if chunk == 1:
                raise
            chunk //= 2
            continue
        yield rows, slice(window, window + count), logits.view(-1, count, logits.shape[1])
        window += count
        if window == len(windows):
            at, window = rows.stop, 0


def _forward(
    classifier: Classifier,
    images: Tensor,
    windows: Windows,
    first: int,
    count: int,
    *,
    fill: checks.PerChannel,
    backend: str,
) -> Tensor:
    """Logits (b·count, K) of windows first … first+count−1 of `images`."""
    copies = ops.occlude(
        images, first, count, patch=windows.patch, stride=windows.stride, fill=fill,
        mean=classifier.mean, std=classifier.std, dtype=classifier.input_dtype(images),
        backend=backend,
    )  # fmt: skip
    with torch.no_grad():
        return classifier.forward(copies, search=True)


def chunk_size(classifier: Classifier, images: Tensor, max_memory: int | None) -> int:
    """Copies a forward pass: what the cache likes on a CPU, what fits elsewhere.

    `max_memory` bytes, or half of the free memory on CUDA, are divided by an estimate of what one
    copy needs at once.
    """
    if max_memory is None and not images.is_cuda:
        return CPU_CHUNK
    if max_memory is None:
        max_memory = int(CUDA_SHARE * torch.cuda.mem_get_info(images.device)[0])
    most = CUDA_CHUNK if images.is_cuda else CPU_CHUNK
    return max(1, min(most, max_memory // _bytes_per_copy(classifier, images)))


@torch.no_grad()
def _bytes_per_copy(classifier: Classifier, images: Tensor) -> int:
    """Estimate the memory of one copy's forward pass from one probe, which is not counted.

    The copy itself and twice the largest operation: its inputs, its outputs, and as much again for
    a shortcut or a library's scratch space.
    """
    copy = classifier.inputs(images[:1])
    with _LargestOperation() as seen:
        classifier.model(copy)
    return int(copy.numel() * copy.element_size() + 2 * seen.bytes)


class _LargestOperation(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches every operation and keeps the most bytes that one has read and written."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_iter((args, result)) if isinstance(t, Tensor)]
        self.bytes = max(self.bytes, sum(t.numel() * t.element_size() for t in tensors))
        return result
