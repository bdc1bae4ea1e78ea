"""Logits of zeroed-out copies by replaying the traced model: clean maps once, then each window."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .. import checks
from ..classifier import Classifier
from ..numerics import compute_dtype
from ..windows import Windows
from .incremental import Runner
from .lower import lower
from .network import Network
from .plan import Plan, best_incremental_plan, plan_for
from .trace import Graph, TraceError

CPU_BYTES = 32 * 2**20  # of a chunk: measured best at 32 to 64 windows of the benchmark's networks
CPU_CHUNK = (16, 64)
CPU_CLEAN_BYTES = 256 * 2**20  # of the clean maps of a group of images
CUDA_CHUNK = 4096  # not measured
CUDA_SHARE = 0.4  # of the free memory, where no max_memory is given; not measured

SCRATCH = 1.25  # what libraries take on top of the maps, as a factor

# Floating-point operations in the time that a byte takes to move.
FLOPS_PER_BYTE = {"cpu": 20.0, "cuda": 100.0}  # the second is not measured
WORTHWHILE = 0.9  # the cost of an incremental plan as a share of the dense one's

AGREEMENT = 1000  # largest deviation of a replayed logit from the model's, in units of rounding


class Replay:
    """A traced model, planned for one set of windows and one precision.

    Parameters
    ----------
    classifier, images
        The model and the batch (B, C, H, W).
    windows, fill
        What is zeroed out, and with what.
    method
        "auto", "incremental" or "dense".
    dtype
        Of the maps: the model's own, or bfloat16.
    backend, max_memory
        As in `occlusion_scores`.

    Raises
    ------
    TraceError
        With method "incremental", if no operation can run on tiles.
    """

    def __init__(
        self,
        classifier: Classifier,
        images: Tensor,
        windows: Windows,
        fill: checks.PerChannel,
        *,
        graph: Graph,
        method: str,
        dtype: torch.dtype,
        backend: str,
        max_memory: int | None,
    ) -> None:
        self.classifier, self.images, self.windows = classifier, images, windows
        self.max_memory = max_memory
        network = lower(graph, dtype, images.device)
        price = FLOPS_PER_BYTE.get(images.device.type, FLOPS_PER_BYTE["cpu"])
        self.plan = _chosen(network, windows, method, price)
        self.chunk, self.group = self._sizes()
        self.runner = Runner(self.plan, self._fill(fill), windows.patch, self.chunk, backend)

    def agrees(self, clean: Tensor) -> bool:
        """Whether the replay gives the model's own logits for the first clean images.

        This pass is not counted.
        """
        few = clean[: min(2, self.group)]
        found = self.clean_logits(self.images[: len(few)]).to(clean.dtype)
        share = min(AGREEMENT * torch.finfo(few.dtype).eps, 0.1)
        return bool(((found - few).abs() <= share * few.abs().amax().clamp(min=1)).all())

    def clean_logits(self, images: Tensor) -> Tensor:
        """Logits (B, K) of whole images."""
        output = self.plan.network.output
        found = [
            self.plan.network.run(self.classifier.inputs(part), {output})[output]
            for part in torch.split(images, self.group)
        ]
        return torch.cat(found)

    def logits(self, pairs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield chunks of `pairs` and their logits (n, K).

        A pair is image·windows + window; `pairs` (n,) int64 are ascending. On CUDA out-of-memory
        the chunk is halved and the work goes on.
        """
        images = pairs // len(self.windows)
        at = 0
        while at < len(pairs):
            first = int(images[at])
            stop = int(torch.searchsorted(images, first + self.group))
            try:
                clean = self._clean(first, int(images[stop - 1]) + 1)
                while at < stop:
                    part = pairs[at : min(at + self.chunk, stop)]
                    yield part, self._chunk(clean, part, first)
                    at += len(part)
            except torch.OutOfMemoryError:
                if self.chunk == 1 and self.group == 1:
                    raise
                clean = {}
                self.chunk, self.group = max(1, self.chunk // 2), max(1, self.group // 2)

    def _clean(self, first: int, stop: int) -> dict[int, Tensor]:
        images = self.images[first:stop]
        if self.plan.sources - {0}:
            self.classifier.forwards += len(images)
        return self.runner.clean(self.classifier.inputs(images))

    def _chunk(self, clean: dict[int, Tensor], pairs: Tensor, first: int) -> Tensor:
        self.classifier.forwards += len(pairs)
        window = pairs % len(self.windows)
        places = (pairs // len(self.windows) - first, window // self.windows.cols,
                  window % self.windows.cols)  # fmt: skip
        return self.runner.logits(clean, *(place.int() for place in places))

    def _fill(self, fill: checks.PerChannel) -> Tensor:
        """The fill as the model takes it, (C,): a pixel's value, normalised."""
        channels = self.images.shape[1]
        value = torch.tensor(
            checks.per_channel("fill", fill, channels),
            dtype=compute_dtype(self.images), device=self.images.device,
        )  # fmt: skip
        pixel = value.to(self.images.dtype)[None, :, None, None]
        return self.classifier.inputs(pixel).flatten()

    def _sizes(self) -> tuple[int, int]:
        """Windows of a chunk, and images whose clean maps are held at once."""
        size = self.plan.network.dtype.itemsize * SCRATCH
        window = max(1, int(self.plan.elements() * size))
        image = max(1, int(self.plan.clean_elements() * size))
        whole = max(1, int(self.plan.clean_peak() * size))
        most = len(self.images) * len(self.windows)
        budget = self.max_memory
        if budget is None and self.images.is_cuda:
            budget = int(CUDA_SHARE * torch.cuda.mem_get_info(self.images.device)[0])
        if self.images.is_cuda:
            chunk, room = CUDA_CHUNK, budget or 0
        else:
            least, largest = CPU_CHUNK
            chunk = min(max(CPU_BYTES // window, least), largest)
            room = CPU_CLEAN_BYTES
        if budget is not None:
            room = min(room, budget // 2)
            chunk = min(chunk, (budget - min(room, max(image, whole))) // window)
        group = max(1, min(len(self.images), room // (image + whole)))
        return max(1, min(chunk, most)), group


def _chosen(network: Network, windows: Windows, method: str, price: float) -> Plan:
    """The plan that a method asks for."""
    dense = plan_for(network, windows, 0.0, price)
    if method == "dense":
        return dense
    best = best_incremental_plan(network, windows, price)
    if best is None and method == "incremental":
        raise TraceError(_obstacle(dense))
    if best is None or (method == "auto" and best.cost > WORTHWHILE * dense.cost):
        return dense
    return best


def _obstacle(plan: Plan) -> str:
    """Why no operation runs on tiles."""
    for step in plan.network.steps:
        if step.inputs and step.tile is None:
            return f"{step.name}: not known to work on a part of a map"
        if step.inputs:
            return f"{step.name}: every window reaches most of its map"
    return "the model has no operation on maps"
