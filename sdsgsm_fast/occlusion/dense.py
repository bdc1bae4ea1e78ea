"""Occlusion by the model's own forward passes over zeroed-out copies, in chunks."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..common.windows import Windows
from ..kernels import ops
from ..model.classifier import Classifier
from ..model.memory import forward_bytes, free_bytes, is_shortage

CPU_CHUNK = 64  # copies a forward pass at most
CPU_BYTES = 100 * 2**10  # of a thread's copies: 16 of 32×32 and 4 of 224×224 were best on 2 threads
LEAST_COPIES = 2  # of a thread
CUDA_CHUNK = 4096  # not measured
CUDA_SHARE = 0.5  # of the free memory, where no max_memory is given; not measured


class DenseRunner:
    """Full forward passes of the model as it is, whatever it does.

    Parameters
    ----------
    classifier, images
        The model and the batch (B, C, H, W).
    windows, fill
        What is zeroed out, and with what: a value for each channel, or images (B, C, H, W).
    reduced
        Run under bfloat16 autocast.
    backend, max_memory
        As in `occlusion_scores`.
    """

    def __init__(
        self,
        classifier: Classifier,
        images: Tensor,
        windows: Windows,
        fill: tuple[float, ...] | Tensor,
        *,
        reduced: bool,
        backend: str,
        max_memory: int | None,
    ) -> None:
        self.classifier, self.images, self.windows = classifier, images, windows
        self.fill, self.reduced, self.backend = fill, reduced, backend
        self.chunk = self.group = chunk_size(classifier, images, max_memory)

    def clean_logits(self, first: int, stop: int) -> Tensor:
        """Logits (n, K) of some images as they are."""
        return self.classifier.logits(self.images[first:stop], reduced=self.reduced)

    def forget(self) -> None:
        """Nothing is held."""

    def logits(self, pairs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield chunks of `pairs` and their logits (n, K).

        A pair is image·windows + window; `pairs` (n,) int64 are ascending. On CUDA out-of-memory
        the chunk is halved and the work goes on.
        """
        at, numbers = 0, pairs.tolist()
        while at < len(numbers):
            part = slice(at, at + self.chunk)
            try:
                copies = [self._copies(*run) for run in self._runs(numbers[part])]
                inputs = torch.cat(copies) if len(copies) > 1 else copies[0]
                with torch.no_grad():
                    logits = self.classifier.forward(inputs, reduced=self.reduced)
            except RuntimeError as error:
                if self.chunk == 1 or not is_shortage(error):
                    raise
                self.chunk = self.group = self.chunk // 2
                continue
            yield pairs[part], logits
            at += len(logits)

    def _runs(self, numbers: list[int]) -> Iterator[tuple[slice, int, int]]:
        """Split pairs into zero-outs: images, first window, number of windows."""
        each, at = len(self.windows), 0
        while at < len(numbers):
            image, window = divmod(numbers[at], each)
            stop = at + 1
            while stop < len(numbers) and numbers[stop] - numbers[at] == stop - at:
                stop += 1
            images = (stop - at) // each if window == 0 else 0
            count = each if images else min(stop - at, each - window)
            images = max(1, images)
            yield slice(image, image + images), window, count
            at += images * count

    def _copies(self, rows: slice, first: int, count: int) -> Tensor:
        """Zeroed-out copies as the model takes them."""
        c = self.classifier
        if isinstance(self.fill, Tensor):
            copies = self.images[rows].repeat_interleave(count, 0)
            for i in range(count):
                y, x = self.windows[first + i]
                copies[i::count, :, y, x] = self.fill[rows, :, y, x]
            return c.inputs(copies)
        return ops.occlude(
            self.images[rows], first, count, patch=self.windows.patch, stride=self.windows.stride,
            fill=self.fill, mean=c.mean, std=c.std, dtype=c.input_dtype(self.images),
            backend=self.backend,
        )  # fmt: skip


def chunk_size(classifier: Classifier, images: Tensor, max_memory: int | None) -> int:
    """Copies a forward pass: what the cache likes on a CPU, what fits elsewhere.

    `max_memory` bytes, or half of the free memory on CUDA, are divided by an estimate of what one
    copy needs at once.
    """
    most = CUDA_CHUNK if images.is_cuda else _cached_copies(images)
    most = min(most, classifier.batch_size or most)
    if max_memory is None and not images.is_cuda:
        return most
    if max_memory is None:
        max_memory = int(CUDA_SHARE * free_bytes(images.device))
    return max(1, min(most, max_memory // forward_bytes(classifier, images)))


def _cached_copies(images: Tensor) -> int:
    """Copies whose maps stay in a CPU's cache, told by the images' size alone."""
    threads = torch.get_num_threads()
    fit = threads * CPU_BYTES // (images[0].numel() * images.element_size())
    return min(CPU_CHUNK, max(fit, LEAST_COPIES * threads))
