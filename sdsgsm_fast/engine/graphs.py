"""A step's passes as CUDA graphs: one launch where there were hundreds."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..common.batches import filled

BatchFunction = Callable[..., tuple[Tensor, ...]]
"""``look(*inputs)``: results, each of which has a row for every row of the inputs."""
Recorder = Callable[[BatchFunction, tuple[Tensor, ...]], BatchFunction]

LOG = logging.getLogger("sdsgsm_fast")
LEAST = 8  # rows of a graph
LARGEST = 1024  # rows from which kernels are taken to outlast their launches; not measured
PATIENCE = 4  # passes before anything is recorded unasked: a recording takes as long as seven
LAUNCH = 1e-4  # seconds in which the host issues an operation and its gradient; not measured
FLOPS = 1e14  # operations a second of a GPU; not measured
WARM_UPS = 3  # libraries choose and allocate before anything is recorded
AGREEMENT = 0.02  # largest deviation of a replay from the passes themselves, by the norm


class GraphedFunction:
    """Does what `function` does, by recordings.

    Sizes are rounded up to 8, 12, 16, 24, 32 and so on; rows that fill up are old ones. What is too
    large runs as it is; so does everything once something could not be recorded, or a replay
    differed.

    Parameters
    ----------
    function
        Takes tensors (B, …) and returns some; its rows must not depend on each other.
    record
        ``record(function, inputs)`` returns what replays it for inputs of that shape.
    patience
        0: there is a recording for each size. Else the largest size that was seen is recorded after
        so many passes, smaller batches use it too, and a failure is no cause for a warning.
    largest
        Rows of a recording, at most; None for `LARGEST`.
    """

    def __init__(
        self, function: BatchFunction, record: Recorder | None = None, *, patience: int = 0, largest: int | None = None
    ) -> None:
        self.function, self.record = function, record or CudaGraphs()
        self.patience, self.largest = patience, LARGEST if largest is None else largest
        self.replays: dict[tuple[int, int], BatchFunction] = {}  # by rows, and number of inputs
        self.failed = False
        self._passes, self._most = 0, 0  # since the last recording: how many, and the largest size

    def _size_for(self, inputs: tuple[Tensor, ...]) -> int | None:
        """Rows of the recording to use; None where the passes run as they are."""
        size = rounded(len(inputs[0]))
        if self.failed or size > self.largest:
            return None
        if not self.patience:
            return size
        large_enough = [rows for rows, count in self.replays if rows >= size and count == len(inputs)]
        if large_enough:
            return min(large_enough)
        self._passes, self._most = self._passes + 1, max(self._most, size)
        if self._passes <= self.patience:
            return None
        size, self._passes, self._most = self._most, 0, 0
        return size

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The results of `function`, in memory of their own."""
        size = self._size_for(inputs)
        if size is None:
            return self.function(*inputs)
        key = size, len(inputs)
        if key not in self.replays:
            try:
                self.replays[key] = self._recorded(tuple(filled(x, size) for x in inputs))
            except torch.OutOfMemoryError:
                raise  # the caller halves its batches
            except Exception as error:  # whatever cannot be recorded runs as it is
                self.failed = True
                self.replays.clear()
                reason = str(error).split("\n")[0]
                if self.patience:
                    LOG.info("search: not recorded as a CUDA graph: %s", reason)
                else:
                    warnings.warn(f"cuda_graphs: not used, {reason}", stacklevel=3)
                return self.function(*inputs)
            LOG.info("search: passes of %d images recorded as a CUDA graph", size)
        return self.replays[key](*inputs)

    def _recorded(self, inputs: tuple[Tensor, ...]) -> BatchFunction:
        """A replay that does the same for other inputs too: those, turned around."""
        replay = self.record(self.function, inputs)
        other = tuple(x.flip(tuple(range(x.ndim))) for x in inputs)
        for found, expected in zip(replay(*other), self.function(*other), strict=True):
            if not bool((found - expected).norm() <= AGREEMENT * expected.norm()):
                raise RuntimeError("a replay differs from the passes themselves")
        return replay


class CudaGraphs:
    """Records CUDA graphs that share their memory, which is right for results that are copied."""

    def __init__(self) -> None:
        self.pool: Any = None

    def __call__(self, function: BatchFunction, inputs: tuple[Tensor, ...]) -> BatchFunction:
        """Record `function` for inputs of that shape."""
        held, device = tuple(x.clone() for x in inputs), inputs[0].device
        graph = torch.cuda.CUDAGraph()
        # The outer stream comes back even if the recording breaks off.
        with torch.cuda.device(device), torch.cuda.stream(torch.cuda.current_stream(device)):
            aside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(WARM_UPS):
                    function(*held)
                # A capture that breaks off can leave PyTorch's generator recording: none is begun in vain.
                if waits_for_device(function, held):
                    raise RuntimeError("the passes wait for the device")
            torch.cuda.current_stream().wait_stream(aside)
            self.pool = torch.cuda.graph_pool_handle() if self.pool is None else self.pool
            # Other threads, a loader's for instance, may go on with theirs meanwhile.
            mode = "thread_local"
            with torch.cuda.graph(graph, self.pool, aside, capture_error_mode=mode):
                outputs = function(*held)

        def replay(*given: Tensor) -> tuple[Tensor, ...]:
            rows = len(given[0])
            for memory, value in zip(held, given, strict=True):
                memory[:rows].copy_(value)
            with torch.cuda.device(device):
                graph.replay()
            return tuple(out[:rows].clone() for out in outputs)

        return replay


def waits_for_device(function: BatchFunction, inputs: tuple[Tensor, ...]) -> bool:
    """Whether a function reads a device's values on the host, which no recording can hold.

    PyTorch is asked to warn rather than to fail: another thread's waits are none of ours.
    """
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            function(*inputs)
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    return any("synchronizing CUDA operation" in str(warning.message) for warning in said)


def can_be_recorded(images: Tensor) -> bool:
    """Whether passes with such images can be recorded."""
    return images.is_cuda


def rows_worth_recording(operations: int, work: float) -> int:
    """Rows up to which a GPU computes a pass and its gradient faster than the host can issue it.

    `operations` of a pass, and its floating-point operations an image.
    """
    return min(LARGEST, int(operations * LAUNCH * FLOPS / max(3 * work, 1.0)))


def rounded(rows: int) -> int:
    """Round up to one of 8, 12, 16, 24, 32, 48 and so on."""
    size = LEAST
    while size < rows:
        size = size * 3 // 2 if size & (size - 1) == 0 else size // 3 * 4
    return size
