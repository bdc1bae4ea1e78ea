"""Which steps run on tiles, and where each window's tiles lie: worked out once, before any image.

A window changes a rectangle of the input; each operation widens it by its reach. Windows that run
as one batch share one size of rectangle a step: windows near the border, whose rectangles the
border cuts, run apart from those of the middle, whose are larger. Steps run on tiles until a
rectangle covers so much of its map that whole maps are cheaper.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..common.windows import Windows
from .layer import Layer
from .network import Network, Step
from .reach import Span

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Candidates for the largest share of a map that a step takes as tiles."""

Spans = tuple[Span | None, ...]
"""Where the windows' changes lie on one axis, for each step; None where it takes whole maps."""

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

    @property
    def whole(self) -> tuple[int, int]:
        """Height and width of the map."""
        return self.rows.size, self.cols.size


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
    """What is done for each step for the windows of some rows and columns.

    Attributes
    ----------
    rows, cols
        The rows and columns of windows.
    actions
        One a step; that of step 0 and of constants says nothing.
    crops
        The rectangles of each step that runs on tiles.
    cost
        Predicted, in floating-point operations a window.
    """

    network: Network
    rows: tuple[int, ...]
    cols: tuple[int, ...]
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
        dying = self.network.dying({self.network.output})
        held: dict[int, int] = {}
        most = 0
        for k, action in enumerate(self.actions):
            pasted = sum(math.prod(cut.size) * _channels(steps[cut.source]) for cut in action.cuts if cut is not None)
            held[k] = self._result(k)
            most = max(most, sum(held.values()) + pasted + self._scratch(k))
            for i in dying[k]:
                held.pop(i, None)
        return most

    def _size(self, k: int) -> tuple[int, int]:
        """Height and width of what a step computes."""
        crop, shape = self.crops[k], self.network.steps[k].shape
        assert shape is not None
        return crop.size if crop is not None else (shape[1], shape[2])

    def _scratch(self, k: int) -> int:
        """Values that a convolution holds besides its inputs and outputs."""
        layer = self.network.steps[k].tile
        return layer.scratch(*self._size(k)) if isinstance(layer, Layer) else 0

    def _result(self, k: int) -> int:
        step = self.network.steps[k]
        if step.constant is not None or k == 0:
            return 0
        return _channels(step) * math.prod(self._size(k)) if self.actions[k].tiled else step.elements


def clean_elements(network: Network, sources: set[int]) -> int:
    """Values of the clean maps of one image that are kept to be cut up."""
    steps = network.steps
    return sum(steps[k].elements for k in sources if steps[k].constant is None)


def clean_peak(network: Network) -> int:
    """Most values that the pass over one clean image holds besides those that are kept."""
    steps = network.steps
    return 2 * max(sum(steps[i].elements for i in step.inputs) + step.elements for step in steps)


class Planner:
    """Makes plans for a network and the windows over its input.

    Parameters
    ----------
    network, windows
        The steps, and what is zeroed out.
    flops_per_byte
        Price of moving a byte.
    """

    def __init__(self, network: Network, windows: Windows, flops_per_byte: float) -> None:
        self.network, self.windows = network, windows
        self.per_element = 2 * flops_per_byte * network.dtype.itemsize  # read and written
        self.spreads: dict[tuple[int, tuple[int, ...]], Spans] = {}
        self.splits: dict[int, list[Plan]] = {}

    def dense(self) -> Plan:
        """Whole maps for all windows."""
        return self.plan(0.0)

    def plan(self, share: float, rows: Sequence[int] | None = None, cols: Sequence[int] | None = None) -> Plan:
        """The plan whose rectangles cover at most `share` of their maps, for some windows."""
        chosen = self._chosen(rows, cols)
        crops, cost = self._crops(share, *chosen)
        actions = tuple(self._action(k, crops, *chosen) for k in range(len(crops)))
        return Plan(self.network, *chosen, actions, crops, cost)

    def best(self, rows: Sequence[int] | None = None, cols: Sequence[int] | None = None) -> Plan:
        """The cheapest plan with tiles for some windows; a dense one if none has any."""
        chosen = self._chosen(rows, cols)
        candidates = [(self._crops(share, *chosen), share) for share in SHARES]
        tiled = [c for c in candidates if any(crop is not None for crop in self._computed(c[0][0]))]
        share = min(tiled, key=lambda c: c[0][1])[1] if tiled else 0.0
        return self.plan(share, *chosen)

    def split(self, classes: int) -> list[Plan]:
        """Best plans for windows sorted by their distance from the border, on both axes."""
        if classes not in self.splits:
            rows, cols = (_classes(n, classes) for n in (self.windows.rows, self.windows.cols))
            self.splits[classes] = [self.best(r, c) for r in rows for c in cols]
        return self.splits[classes]

    def _chosen(
        self, rows: Sequence[int] | None, cols: Sequence[int] | None
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        w = self.windows
        return (
            tuple(range(w.rows)) if rows is None else tuple(rows),
            tuple(range(w.cols)) if cols is None else tuple(cols),
        )

    def _computed(self, crops: Sequence[Crop | None]) -> list[Crop | None]:
        """The rectangles of steps that compute something."""
        return [c for c, s in zip(crops, self.network.steps, strict=True) if s.inputs]

    # Rectangles

    def spread(self, axis: int, chosen: tuple[int, ...]) -> Spans:
        """Where the changes lie on an axis if all that can be runs on tiles."""
        if (axis, chosen) not in self.spreads:
            self.spreads[axis, chosen] = self._spread(axis, chosen)
        return self.spreads[axis, chosen]

    def _spread(self, axis: int, chosen: tuple[int, ...]) -> Spans:
        w = self.windows
        slices = [w[i * w.cols][0] if axis == 0 else w[i][1] for i in chosen]
        found: list[Span | None] = [
            Span(
                tuple(s.start for s in slices),
                tuple(s.stop - 1 for s in slices),
                (w.height, w.width)[axis],
            )
        ]
        nothing = ((0,) * len(chosen), (-1,) * len(chosen))
        for step in self.network.steps[1:]:
            inputs = [found[i] for i in step.inputs]
            if step.constant is not None and step.shape is not None:
                found.append(Span(*nothing, step.shape[1 + axis]))
            elif step.tile is None or step.shape is None or not inputs or None in inputs:
                found.append(None)
            else:
                widened = [
                    span.through(reach[axis], step.shape[1 + axis])
                    for span, reach in zip(inputs, step.reaches, strict=True)
                    if span is not None
                ]
                union = widened[0]
                for other in widened[1:]:
                    union = union.union(other)
                found.append(union)
        return tuple(found)

    def _crops(
        self, share: float, rows: tuple[int, ...], cols: tuple[int, ...]
    ) -> tuple[tuple[Crop | None, ...], float]:
        """The rectangles up to a share of their maps, and what that costs."""
        crops: list[Crop | None] = []
        pasted: set[int] = set()
        cost = 0.0
        for k, step in enumerate(self.network.steps):
            row, col = self.spread(0, rows)[k], self.spread(1, cols)[k]
            tiled = row is not None and col is not None
            tiled = tiled and all(crops[i] is not None for i in step.inputs)
            crop = Crop(row, col) if tiled and row is not None and col is not None else None
            part = 1.0 if crop is None else math.prod(crop.size) / math.prod(crop.whole)
            if step.inputs and part > share:
                crop, part = None, 1.0
            crops.append(crop)
            if not step.inputs:
                continue
            cost += part * (step.work + self.per_element * step.elements)
            for j, i in enumerate(step.inputs):
                given = crops[i]
                if crop is not None:
                    size = [reach.needed(0, n)[1] for reach, n in zip(step.reaches[j], crop.size, strict=True)]
                    cost += self.per_element * math.prod(size) * _channels(self.network.steps[i])
                elif given is not None and i not in pasted:
                    cost += self.per_element * self.network.steps[i].elements
                    pasted.add(i)
        return tuple(crops), cost

    # Actions

    def _action(self, k: int, crops: tuple[Crop | None, ...], rows: tuple[int, ...], cols: tuple[int, ...]) -> Action:
        """Tiles for a step that has rectangles, whole maps for any other."""
        step, crop = self.network.steps[k], crops[k]
        if not step.inputs:
            return Action(False, ())
        if crop is not None:
            return Action(True, tuple(self._tile(step, j, crop, crops) for j in range(len(step.inputs))))
        corner = ((0,) * len(rows), (0,) * len(cols))
        cuts: list[Cut | None] = []
        for i in step.inputs:
            given = crops[i]
            if given is None or self.network.steps[i].constant is not None:
                cuts.append(None)
            else:
                cuts.append(_cut(i, corner, given.whole, 0.0, given))
        return Action(False, tuple(cuts))

    def _tile(self, step: Step, j: int, crop: Crop, crops: tuple[Crop | None, ...]) -> Cut | None:
        """Tiles of input j; None where the crops that are there are just these."""
        source, (row, col) = step.inputs[j], step.reaches[j]
        given = crops[source]
        assert given is not None
        starts: Starts = (
            tuple(row.needed(at, 1)[0] for at in crop.rows.start),
            tuple(col.needed(at, 1)[0] for at in crop.cols.start),
        )
        size = row.needed(0, crop.size[0])[1], col.needed(0, crop.size[1])[1]
        computed = source and self.network.steps[source].constant is None
        if computed and size == given.size and starts == (given.rows.start, given.cols.start):
            return None
        return _cut(source, starts, size, step.pad, given)


def _cut(source: int, starts: Starts, size: tuple[int, int], pad: float, given: Crop) -> Cut:
    """Describe tiles of a step's map that begin at `starts`."""
    exact = source == 0  # the fill is what the window holds, no more
    rows, cols = (_along(at, span, exact) for at, span in zip(starts, (given.rows, given.cols), strict=True))
    return Cut(source, rows, cols, size, pad)


def _along(starts: tuple[int, ...], span: Span, exact: bool) -> tuple[tuple[int, int, int], ...]:
    """Start of each tile and what the crop covers, on one axis."""
    if exact:
        return tuple(zip(starts, span.low, (h + 1 for h in span.high), strict=True))
    return tuple((at, s, s + span.length) for at, s in zip(starts, span.start, strict=True))


def _classes(count: int, classes: int) -> list[tuple[int, ...]]:
    """Split 0 … count−1 into about equal classes by the distance from the nearer end."""
    order = sorted(range(count), key=lambda i: (min(i, count - 1 - i), i))
    edges = [round(count * c / classes) for c in range(classes + 1)]
    parts = (order[a:b] for a, b in itertools.pairwise(edges))
    return [tuple(sorted(part)) for part in parts if part]


def _channels(step: Step) -> int:
    assert step.shape is not None
    return step.shape[0]


def table(entries: tuple[tuple[int, int, int], ...], device: torch.device) -> Tensor:
    """A cut's rows or columns as the operator takes them."""
    return torch.tensor(entries, dtype=torch.int32, device=device)
