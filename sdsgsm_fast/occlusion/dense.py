"""Occlusion by full forward passes over zeroed-out copies, in chunks that fit the cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .. import checks, ops
from ..classifier import Classifier
from ..windows import Windows

CPU_CHUNK = 64  # copies a forward pass: measured best on CPUs at 32 to 64 (one image's windows)
CUDA_CHUNK = 4096
CUDA_SHARE = 0.5  # of the free memory, where no max_memory is given


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
    """Estimate the memory of one copy's forward pass from one probe.

    Twice the largest layer (its input, its output, and as much again for a shortcut or a library's
    scratch space) and the copy itself.
    """
    copy = classifier.normalised(images[:1])
    largest = 0

    def measure(_: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        nonlocal largest
        tensors = [t for t in (*inputs, output) if isinstance(t, Tensor)]
        largest = max(largest, sum(t.numel() * t.element_size() for t in tensors))

    module = classifier.model if isinstance(classifier.model, nn.Module) else nn.Module()
    leaves = [m for m in module.modules() if not any(m.children())]
    handles = [m.register_forward_hook(measure) for m in leaves]
    try:
        classifier.forward(copy, search=True)
    finally:
        for handle in handles:
            handle.remove()
    return copy.numel() * copy.element_size() + 2 * largest
