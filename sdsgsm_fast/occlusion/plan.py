"""Which steps run on tiles, and where each window's tiles lie: worked out once, before any image.

A window changes a rectangle of the input; each operation widens it by its reach. All windows share
one size of rectangle a step, so that they run as one batch; at the border a rectangle is moved
inwards and computes some clean values again. Steps run on tiles until a rectangle covers so much of
its map that whole maps are cheaper.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..windows import Windows
from .convolution import is_product
from .network import Network, Step, last_readers
from .reach import Span

SHARES = (0.1, 0.2, 0.3, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.8, 0.9)
"""Candidates for the largest share of a map that a step takes as tiles."""


Starts = tuple[tuple[int, ...], tuple[int, ...]]
"""First row of the tiles of each row of windows, and first column of each column."""


@dataclass(frozen=True)
class Crop:
    """Rectangles of a map, one a window, that hold all that the window changes."""

    rows: Span
    cols: Span

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, the same for all windows."""
        return self.rows.length, self.cols.length


@dataclass(frozen=True)
class Cut:
    """How a step's input is cut out of the clean map and the crop pasted into it.

    Attributes
    ----------
    source
        The step that made it.
    rows, cols
        For each row and column of windows, as `ops.paste` takes them.
    size
        Height and width of the tile.
    pad
        Value beyond the border.
    """

    source: int
    rows: tuple[tuple[int, int, int], ...]
    cols: tuple[tuple[int, int, int], ...]
    size: tuple[int, int]
    pad: float


@dataclass(frozen=True)
class Action:
    """What is done for one step.

    Attributes
    ----------
    tiled
        Whether it runs on tiles.
    cuts
        For each input its cut; None where the result is taken as it is.
    """

    tiled: bool
    cuts: tuple[Cut | None, ...]


@dataclass(frozen=True)
class Plan:
    """What is done for each step, and what it costs.

    Attributes
    ----------
    actions
        One a step; that of step 0 and of constants says nothing.
    cost
        Predicted, in floating-point operations a window.
    """

    network: Network
    actions: tuple[Action, ...]
    crops: tuple[Crop | None, ...]
    cost: float

    @property
    def sources(self) -> set[int]:
        """Steps whose clean maps are cut up."""
        return {cut.source for action in self.actions for cut in action.cuts if cut is not None}

    @property
    def incremental(self) -> bool:
        """Whether any operation runs on tiles."""
        return any(action.tiled for action in self.actions)

    def elements(self) -> int:
        """Most values that are held at once for one window."""
        steps = self.network.steps
        last = last_readers([step.inputs for step in steps])
        held: dict[int, int] = {}
        most = 0
        for k, (step, action) in enumerate(zip(steps, self.actions, strict=True)):
            pasted = sum(
                cut.size[0] * cut.size[1] * _channels(steps[cut.source])
                for cut in action.cuts
                if cut is not None
            )
            held[k] = self._result(k)
            most = max(most, sum(held.values()) + pasted + self._unfolded(k))
            for i in {*step.inputs, k}:
                if last.get(i, i) <= k and i != self.network.output:
                    held.pop(i, None)
        return most

    def clean_elements(self) -> int:
        """Values of the clean maps that are kept for one image."""
        steps = self.network.steps
        return sum(steps[k].elements for k in self.sources if steps[k].constant is None)

    def clean_peak(self) -> int:
        """Most values that the pass over one clean image holds besides those that are kept."""
        steps = self.network.steps
        return 2 * max(
            sum(steps[i].elements for i in step.inputs) + step.elements for step in steps
        )

    def _unfolded(self, k: int) -> int:
        """Values of a convolution's inputs laid out for a matrix product."""
        step, crop = self.network.steps[k], self.crops[k]
        if step.name != "convolution" or step.shape is None or not step.work:
            return 0
        size = crop.size if self.actions[k].tiled and crop is not None else step.shape[1:]
        inner = round(step.work / (2 * math.prod(step.shape)))
        pixels = size[0] * size[1]
        return inner * pixels if is_product(inner, pixels) else 0

    def _result(self, k: int) -> int:
        step, crop = self.network.steps[k], self.crops[k]
        if step.constant is not None or k == 0:
            return 0
        if self.actions[k].tiled and crop is not None:
            return _channels(step) * crop.size[0] * crop.size[1]
        return step.elements


def best_incremental_plan(network: Network, windows: Windows, flops_per_byte: float) -> Plan | None:
    """The cheapest plan with tiles; `flops_per_byte` is the price of moving a byte."""
    plans = [plan_for(network, windows, share, flops_per_byte) for share in SHARES]
    return min((p for p in plans if p.incremental), key=lambda p: p.cost, default=None)


def plan_for(network: Network, windows: Windows, share: float, flops_per_byte: float) -> Plan:
    """The plan whose tiled steps' rectangles cover at most `share` of their maps; 0 is dense."""
    return _Planner(network, windows, share, flops_per_byte).plan()


class _Planner:
    def __init__(
        self, network: Network, windows: Windows, share: float, flops_per_byte: float
    ) -> None:
        self.network, self.windows, self.share = network, windows, share
        self.per_element = flops_per_byte * network.dtype.itemsize
        self.crops: list[Crop | None] = []
        self.cost = 0.0
        self.pasted: set[int] = set()

    def plan(self) -> Plan:
        """Decide step after step."""
        actions = [self.action(k, step) for k, step in enumerate(self.network.steps)]
        return Plan(self.network, tuple(actions), tuple(self.crops), self.cost)

    def action(self, k: int, step: Step) -> Action:
        """Tiles where they are possible and small enough, else whole maps."""
        if step.constant is not None or k == 0:
            self.crops.append(self.unchanged(step) if k else self.zeroed())
            return Action(False, ())
        crop = self.crop_of(step)
        self.crops.append(crop)
        if crop is None:
            cuts = tuple(self.whole(i) for i in step.inputs)
            self.cost += step.work + 2 * self.per_element * step.elements
            return Action(False, cuts)
        cuts = tuple(self.tile(step, j, crop) for j in range(len(step.inputs)))
        area = crop.size[0] * crop.size[1]
        share = area / (crop.rows.size * crop.cols.size)
        self.cost += share * (step.work + 2 * self.per_element * step.elements)
        return Action(True, cuts)

    def zeroed(self) -> Crop:
        """The windows themselves."""
        w = self.windows
        rows = [w[i * w.cols][0] for i in range(w.rows)]
        cols = [w[j][1] for j in range(w.cols)]
        return Crop(
            Span(tuple(s.start for s in rows), tuple(s.stop - 1 for s in rows), w.height),
            Span(tuple(s.start for s in cols), tuple(s.stop - 1 for s in cols), w.width),
        )

    def unchanged(self, step: Step) -> Crop:
        """No window changes a constant."""
        assert step.shape is not None
        nothing = ((0,) * self.windows.rows, (-1,) * self.windows.rows)
        none = ((0,) * self.windows.cols, (-1,) * self.windows.cols)
        return Crop(Span(*nothing, step.shape[1]), Span(*none, step.shape[2]))

    def crop_of(self, step: Step) -> Crop | None:
        """Rectangles of a step's result; None where it takes whole maps."""
        inputs = [self.crops[i] for i in step.inputs]
        if step.tile is None or step.shape is None or not inputs or None in inputs:
            return None
        rows = cols = None
        for crop, (row, col) in zip(inputs, step.reaches, strict=True):
            assert crop is not None
            r, c = crop.rows.through(row, step.shape[1]), crop.cols.through(col, step.shape[2])
            rows, cols = r if rows is None else rows.union(r), c if cols is None else cols.union(c)
        assert rows is not None
        assert cols is not None
        crop = Crop(rows, cols)
        share = crop.size[0] * crop.size[1] / (step.shape[1] * step.shape[2])
        return crop if share <= self.share else None

    def tile(self, step: Step, j: int, crop: Crop) -> Cut | None:
        """Tiles of input j; None where the crops that are there are just these."""
        source = step.inputs[j]
        given, (row, col) = self.crops[source], step.reaches[j]
        assert given is not None
        tops = [row.needed(start, crop.size[0]) for start in crop.rows.start]
        lefts = [col.needed(start, crop.size[1]) for start in crop.cols.start]
        size = tops[0][1], lefts[0][1]
        starts = tuple(t for t, _ in tops), tuple(t for t, _ in lefts)
        computed = source and self.network.steps[source].constant is None
        if computed and size == given.size and starts == (given.rows.start, given.cols.start):
            return None
        self.pay(source, size)
        return self.cut(source, starts, size, step.pad)

    def whole(self, source: int) -> Cut | None:
        """The whole map of a step that has crops only."""
        crop, step = self.crops[source], self.network.steps[source]
        if crop is None or step.constant is not None:
            return None
        size = crop.rows.size, crop.cols.size
        if source not in self.pasted:
            self.pay(source, size)
        self.pasted.add(source)
        return self.cut(source, ((0,) * self.windows.rows, (0,) * self.windows.cols), size, 0.0)

    def pay(self, source: int, size: tuple[int, int]) -> None:
        self.cost += (
            2 * self.per_element * size[0] * size[1] * _channels(self.network.steps[source])
        )

    def cut(self, source: int, starts: Starts, size: tuple[int, int], pad: float) -> Cut:
        """Describe tiles of a step's map that begin at `starts`."""
        crop = self.crops[source]
        assert crop is not None
        exact = source == 0  # the fill is what the window holds, no more
        rows = _along(starts[0], crop.rows, exact)
        return Cut(source, rows, _along(starts[1], crop.cols, exact), size, pad)


def _along(starts: tuple[int, ...], span: Span, exact: bool) -> tuple[tuple[int, int, int], ...]:
    """Start of each tile and what the crop covers, on one axis."""
    if exact:
        return tuple(zip(starts, span.low, (h + 1 for h in span.high), strict=True))
    return tuple((at, s, s + span.length) for at, s in zip(starts, span.start, strict=True))


def _channels(step: Step) -> int:
    assert step.shape is not None
    return step.shape[0]


def table(entries: tuple[tuple[int, int, int], ...], device: torch.device) -> Tensor:
    """A cut's rows or columns as the operator takes them."""
    return torch.tensor(entries, dtype=torch.int32, device=device)
