"""Logits of zeroed-out copies by replaying the traced model: clean maps once, then each window."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..common.host import to_device, to_host
from ..common.noise import noise_like
from ..common.numerics import compute_dtype, logits_agree, rounding
from ..common.windows import Windows
from ..model.classifier import Classifier
from ..model.memory import free_bytes, is_shortage
from ..model.precision import verdict_rounding, without_tf32
from .cache import PlanCache
from .lower import lower
from .network import Network, channels_last
from .onednn import onednn_enabled
from .plan import Plan, Planner, clean_elements, clean_peak
from .plan_runner import FILLING, PlanRunner
from .trace import Graph, TraceError, trace

Ints = npt.NDArray[np.int64]

# Of a chunk; with twice as much glibc hands pages back that are needed again at once.
CPU_BYTES = 32 * 2**20
CPU_CHUNK = (16, 256)  # few windows of a small network leave most of the time to Python
CPU_CLEAN_BYTES = 256 * 2**20  # of the clean maps of a group of images
CUDA_CHUNK = 4096  # not measured
CUDA_SHARE = 0.4  # of the free memory, where no max_memory is given; not measured

SCRATCH = 1.25  # what libraries take on top of the maps, as a factor

# Floating-point operations in the time that a byte takes to move.
FLOPS_PER_BYTE = {"cpu": 20.0, "cuda": 100.0}  # the second is not measured
PART_COST = 3e8  # operations that take as long as setting up one more part
LEAST_PART = {"cpu": 64, "cuda": 512}  # windows of a batch; the second is not measured
MOST_PLANNERS = 8  # kept of a model, for different windows
CHECKED = 2  # clean images whose logits are compared before kept plans are used
WORTHWHILE = 0.9  # the cost of an incremental plan as a share of the dense one's


class WindowPlans:
    """A traced model and what does not depend on the images' pixels, worked out when it is needed.

    Parameters
    ----------
    graph
        The model's trace.
    device, backend
        Where it is, and whose kernels may run.

    Attributes
    ----------
    agreed : set
        The settings with which a replay gave the model's own logits for a zeroed-out copy.
    """

    def __init__(self, graph: Graph, device: torch.device, backend: str) -> None:
        self.graph, self.device, self.backend = graph, device, backend
        self.agreed: set[Any] = set()
        self._networks: dict[torch.dtype, Network] = {}
        self._planners: dict[tuple[Windows, torch.dtype], Planner] = {}

    def planner(self, windows: Windows, *, reduced: bool) -> Planner:
        """Plans of windows in bfloat16, or in the model's own precision."""
        dtype = torch.bfloat16 if reduced else self.graph.nodes[0].dtypes[0]
        if dtype not in self._networks:
            self._networks[dtype] = lower(self.graph, dtype, self.device, self.backend)
        if (windows, dtype) not in self._planners:
            price = FLOPS_PER_BYTE.get(self.device.type, FLOPS_PER_BYTE["cpu"])
            kept = list(self._planners.items())[1 - MOST_PLANNERS :]
            self._planners = dict(kept) | {(windows, dtype): Planner(self._networks[dtype], windows, price)}
        return self._planners[windows, dtype]


class WindowRunner:
    """A traced model, planned for one set of windows and one precision.

    Parameters
    ----------
    classifier, images
        The model and the batch (B, C, H, W).
    planner
        Of the model's network and the windows.
    fill
        What windows are filled with: a value for each channel, or images (B, C, H, W).
    method
        "auto", "incremental" or "dense".
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
        planner: Planner,
        fill: tuple[float, ...] | Tensor,
        *,
        method: str,
        backend: str,
        max_memory: int | None,
    ) -> None:
        self.classifier, self.images, self.windows = classifier, images, planner.windows
        self.fill, self.max_memory = fill, max_memory
        self.network: Network = planner.network
        self.choices = self._choices(planner, method)
        plans = [plan for choice in self.choices for plan in choice]
        self.sources = set().union(*(plan.sources for plan in plans))
        self.group = self._group()
        self._constants = {k: step.constant for k, step in enumerate(self.network.steps) if step.constant is not None}
        self.clean_maps: tuple[int, int, dict[int, Any]] | None = None  # of images first … stop - 1
        self.counted = False  # whether the pass that made them is
        self.backend, self.filled = backend, self._fill()
        self.parts: dict[int, list[_Part]] = {}  # by the choice

    @property
    def incremental(self) -> bool:
        """Whether anything runs on tiles."""
        return any(plan.incremental for plan in self.choices[0])

    @property
    def described(self) -> str:
        """How the windows are computed, for a log."""
        steps = [(step, action) for step, action in zip(self.network.steps, self.choices[0][0].actions, strict=True)
                 if step.inputs]  # fmt: skip
        tiled = sum(action.tiled for _, action in steps)
        plan = f"{tiled} of {len(steps)} operations on tiles" if tiled else "all operations on whole maps"
        return f"{plan}, {self.group} images at once"

    def _choices(self, planner: Planner, method: str) -> list[list[Plan]]:
        """Plans that together do all windows: one, and where a method allows it several."""
        dense = planner.dense()
        if method == "dense":
            return [[dense]]
        one = planner.split(1)
        together = one[0]
        if method == "incremental" and not together.incremental:
            raise TraceError(_obstacle(self.network))
        # Whatever the batch: an image's passes must not depend on the others.
        if method == "auto" and together.cost > WORTHWHILE * dense.cost:
            return [[dense]]
        several = (planner.split(n) for n in (2, 3, 4) if self._large_enough(n, len(self.images)))
        return [one, *several]

    def _large_enough(self, classes: int, images: float) -> bool:
        """Whether the smallest part of so many images' windows is large enough."""
        least = LEAST_PART.get(self.images.device.type, LEAST_PART["cpu"])
        smallest = (self.windows.rows // classes) * (self.windows.cols // classes)
        return smallest * images >= least

    def _parts(self, count: int) -> list[_Part]:
        """The cheapest plans for so many windows, made ready."""

        def cost(k: int) -> float:
            plans = self.choices[k]
            total = sum(len(p.rows) * len(p.cols) * p.cost for p in plans) / len(self.windows)
            enough = k == 0 or self._large_enough(k + 1, count / len(self.windows))
            return total + PART_COST * len(plans) / count if enough else math.inf

        best = min(range(len(self.choices)), key=cost)
        if best not in self.parts:
            self.parts[best] = [self._part(plan) for plan in self.choices[best]]
        return self.parts[best]

    def _part(self, plan: Plan) -> _Part:
        """A plan made ready, and the windows that belong to it."""
        window = max(1, int(plan.elements() * self.network.dtype.itemsize * SCRATCH))
        chunk = max(1, self._chunk_limit(window))
        rows, cols = (np.full(n, -1, dtype=np.int32) for n in (self.windows.rows, self.windows.cols))
        rows[list(plan.rows)] = np.arange(len(plan.rows))
        cols[list(plan.cols)] = np.arange(len(plan.cols))
        runner = PlanRunner(plan, self.filled, self.windows, self.images.device, self.backend)
        return _Part(runner, rows, cols, chunk)

    def agrees_on_noise(self) -> bool:
        """Whether the replay gives the model's own logits for an image of noise.

        One window of it is zeroed out, at the bottom and half-way along. The passes that this takes
        are not counted.
        """
        with without_tf32(self.images.device):
            return self._agrees_on_noise()

    def _agrees_on_noise(self) -> bool:
        forwards, images = self.classifier.forwards, self.images
        window = (self.windows.rows - 1) * self.windows.cols + self.windows.cols // 2
        noise = noise_like(images)
        zeroed = noise.clone()
        rows, cols = self.windows[window]
        zeroed[:, :, rows, cols] = self._filling(0, 1)[:, :, rows, cols]
        self.forget()
        try:
            self.images = noise
            pair = torch.tensor([window], device=noise.device)
            count = len(self.windows) * len(images)
            found = torch.cat([logits for _, logits in self.logits(pair, count)])
        finally:
            self.images = images
            self.forget()
        expected = self.classifier.logits(zeroed)
        self.classifier.forwards = forwards
        return logits_agree(found, expected, rounding(expected.dtype))

    def agrees_on_clean(self, clean: Tensor) -> bool:
        """Whether the replay gives these logits (B, K) for the first images as they are.

        The pass that this takes is counted if its maps are used.
        """
        count = min(self.group, CHECKED)
        try:
            found = self._keep_clean_maps(0, count, {self.network.output})
        except RuntimeError as error:
            if not is_shortage(error):
                raise
            return False
        share = verdict_rounding(clean.dtype, clean.device)
        return logits_agree(found[self.network.output], clean[:count], share)

    def clean_logits(self, first: int, stop: int) -> Tensor:
        """Logits (n, K) of some images as they are, of `group` at most."""
        found = self._keep_clean_maps(first, stop, {self.network.output})
        self._count(True)
        return found[self.network.output]  # type: ignore[no-any-return]

    def forget(self) -> None:
        """Let go of the clean maps."""
        self.clean_maps = None

    def logits(self, pairs: Tensor, count: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield parts of `pairs`, in an order of its own, and their logits (n, K).

        A pair is image·windows + window; `pairs` (n,) int64 are ascending. They are run as `count`
        windows would be; None for as many as they are. On CUDA out-of-memory the chunk is halved
        and the work goes on.
        """
        parts = self._parts(len(pairs) if count is None else count)
        numbers = to_host(pairs)  # the one wait; where they lie is worked out by the host
        images = numbers // len(self.windows)
        at = 0
        while at < len(pairs):
            first = int(images[at])
            stop = int(np.searchsorted(images, first + self.group))
            last = int(images[stop - 1]) + 1
            try:
                base, clean = self._clean(first, last)
            except RuntimeError as error:
                if self.group == 1 or not is_shortage(error):
                    raise
                self.group = max(1, self.group // 2)
                continue
            for part in parts:
                yield from self._part_logits(part, clean, pairs[at:stop], numbers[at:stop], base)
            at = stop

    def _part_logits(
        self, part: _Part, clean: dict[int, Tensor], pairs: Tensor, numbers: Ints, first: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits of those pairs whose windows belong to a part; `numbers` are the pairs on the host."""
        window = numbers % len(self.windows)
        row, col = part.rows[window // self.windows.cols], part.cols[window % self.windows.cols]
        mine = ((row >= 0) & (col >= 0)).nonzero()[0]
        if len(mine) < len(numbers):
            pairs, numbers, row, col = pairs[to_device(mine, pairs.device)], numbers[mine], row[mine], col[mine]
        places = np.stack((numbers // len(self.windows) - first, row, col)).astype(np.int32)
        image, row_, col_ = to_device(places, pairs.device)
        at = 0
        while at < len(pairs):
            now = slice(at, at + part.chunk)
            try:
                logits = part.runner.logits(clean, image[now], row_[now], col_[now])
            except RuntimeError as error:
                if part.chunk == 1 or not is_shortage(error):
                    raise
                part.chunk = max(1, min(part.chunk, len(pairs) - at) // 2)
                continue
            self.classifier.forwards += len(logits)
            yield pairs[now], logits
            at += len(logits)

    def _clean(self, first: int, stop: int) -> tuple[int, dict[int, Tensor]]:
        """Maps of some images that are cut up, with the first image that they are of."""
        if self.clean_maps is None or not self.clean_maps[0] <= first < stop <= self.clean_maps[1]:
            self._keep_clean_maps(first, stop, set())
        assert self.clean_maps is not None
        self._count(bool(self.sources - {0} - self._constants.keys()))
        return self.clean_maps[0], self.clean_maps[2]

    def _count(self, passed: bool) -> None:
        """Count the pass that made the held maps, once; the images themselves take none."""
        if passed and not self.counted and self.clean_maps is not None:
            self.classifier.forwards += self.clean_maps[1] - self.clean_maps[0]
            self.counted = True

    def _keep_clean_maps(self, first: int, stop: int, wanted: set[int]) -> dict[int, Any]:
        """Compute some images' maps that are cut up, and those of `wanted` steps; keep the first.

        The results are those of `wanted` steps and of all that are kept.
        """
        self.forget()
        sources = self.sources - self._constants.keys()
        found = self.network.run(self.classifier.inputs(self.images[first:stop]), wanted | sources)
        kept = {k: found[k] for k in sources}
        self.clean_maps, self.counted = (first, stop, {**self._constants, **kept}), False
        if isinstance(self.fill, Tensor):
            inputs = self.classifier.inputs(self._filling(first, stop))
            self.clean_maps[2][FILLING] = channels_last(inputs.to(self.network.dtype))
        return found

    def _filling(self, first: int, stop: int) -> Tensor:
        """Images (n, C, H, W) of what windows of some images are filled with."""
        if isinstance(self.fill, Tensor):
            return self.fill[first:stop]
        values = torch.tensor(self.fill, dtype=compute_dtype(self.images), device=self.images.device)
        return values.to(self.images.dtype)[None, :, None, None].expand(stop - first, -1, *self.images.shape[2:])

    def _fill(self) -> Tensor | None:
        """The fill as the model takes it, (C,): a pixel's value, normalised; None for images."""
        if isinstance(self.fill, Tensor):
            return None
        return self.classifier.inputs(self._filling(0, 1)[:, :, :1, :1]).flatten()

    def _budget(self) -> int | None:
        """Bytes that may be taken; None for what suits the CPU's cache."""
        if self.max_memory is None and self.images.is_cuda:
            return int(CUDA_SHARE * free_bytes(self.images.device))
        return self.max_memory

    def _room(self) -> int:
        """Bytes for clean maps: half of what may be taken."""
        budget = self._budget()
        if budget is None:
            return CPU_CLEAN_BYTES
        return budget // 2 if self.images.is_cuda else min(CPU_CLEAN_BYTES, budget // 2)

    def _group(self) -> int:
        """Images whose clean maps are held at once."""
        size = self.network.dtype.itemsize * SCRATCH
        image = clean_elements(self.network, self.sources) + clean_peak(self.network)
        return max(1, min(len(self.images), int(self._room() / (image * size))))

    def _chunk_limit(self, window: int) -> int:
        """Windows of `window` bytes that run at once."""
        budget, (least, most) = self._budget(), CPU_CHUNK
        chunk = min(max(CPU_BYTES // window, least), most)
        if self.images.is_cuda:
            chunk = CUDA_CHUNK
        if budget is None:
            return chunk
        size = self.network.dtype.itemsize * SCRATCH
        clean_maps = int(self.group * clean_elements(self.network, self.sources) * size)
        return min(chunk, (budget - clean_maps) // window)


_PLANS: PlanCache[WindowPlans] = PlanCache()
"""Plans of the last model, for its next batch."""


class CompiledWindows:
    """A model made ready for zeroed-out copies: in its own precision, in bfloat16 when asked.

    Parameters
    ----------
    classifier, images, clean
        The model, held, a batch (B, C, H, W), and its logits (B, K) in the model's own precision.
    windows, fill
        What is zeroed out, and with what.
    method
        "auto", "dense" or "incremental".
    backend, max_memory
        As in `occlusion_scores`.

    Raises
    ------
    Exception
        Whatever the model cannot be compiled for, or `TraceError` where its logits would not be the
        model's; then it runs itself.
    """

    def __init__(
        self,
        classifier: Classifier,
        images: Tensor,
        clean: Tensor,
        *,
        windows: Windows,
        fill: tuple[float, ...] | Tensor,
        method: str,
        backend: str,
        max_memory: int | None,
    ) -> None:
        self.classifier, self.images, self.windows, self.fill = classifier, images, windows, fill
        self.method, self.backend, self.max_memory = method, backend, max_memory
        self._plans = self._plans_of_model()
        self._runners: dict[bool, WindowRunner] = {}
        self._check(clean)

    @property
    def work(self) -> float:
        """Floating-point operations of a whole image."""
        return self.runner(reduced=False).network.work

    def runner(self, *, reduced: bool) -> WindowRunner:
        """Runs the windows in bfloat16, or in the model's own precision."""
        if reduced not in self._runners:
            self._runners[reduced] = WindowRunner(
                self.classifier, self.images, self._plans.planner(self.windows, reduced=reduced), self.fill,
                method=self.method, backend=self.backend, max_memory=self.max_memory,
            )  # fmt: skip
        return self._runners[reduced]

    def _plans_of_model(self) -> WindowPlans:
        """The last model's plans again if it has not changed since, else those of this one."""
        images = self.images
        settings = (images.shape[1:], images.dtype, images.device, self.backend, onednn_enabled())
        return _PLANS.of(
            self.classifier.model, settings, self._trace, lambda own: WindowPlans(own, images.device, self.backend)
        )

    def _trace(self) -> Graph:
        graph = trace(self.classifier, self.images)
        jump = graph.jump()
        if jump is not None:
            raise TraceError(f"{jump}: a rounding error may become a step")
        return graph

    def _check(self, clean: Tensor) -> None:
        """Compare a zeroed-out copy the first time, after that the clean images."""
        exact, plans, c = self.runner(reduced=False), self._plans, self.classifier
        fill = "images" if isinstance(self.fill, Tensor) else self.fill
        settings = (self.windows, fill, self.method, self.max_memory, _hashable(c.mean), _hashable(c.std))
        if not (exact.agrees_on_clean(clean) if settings in plans.agreed else exact.agrees_on_noise()):
            _PLANS.drop()
            raise TraceError("the replayed logits are not the model's")
        plans.agreed.add(settings)


@dataclass
class _Part:
    """Windows that run together: a plan's, by the places of their rows and columns in it.

    `rows` and `cols` have an entry for each row and column of windows, −1 where it is another's.
    """

    runner: PlanRunner
    rows: npt.NDArray[np.int32]
    cols: npt.NDArray[np.int32]
    chunk: int


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _obstacle(network: Network) -> str:
    """Why no operation runs on tiles."""
    for step in network.steps:
        if step.inputs and step.tile is None:
            return f"{step.name}: not known to work on a part of a map"
        if step.inputs:
            return f"{step.name}: every window reaches most of its map"
    return "the model has no operation on maps"
