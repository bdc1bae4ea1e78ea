"""How far a change spreads through an operation: interval arithmetic on one axis of a map."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Reach:
    """One axis of an operation: output o reads input o·stride − padding + t·dilation, t < kernel.

    Attributes
    ----------
    kernel, stride, padding, dilation
        As a convolution's on this axis. A pointwise operation is the default.
    """

    kernel: int = 1
    stride: int = 1
    padding: int = 0
    dilation: int = 1

    @property
    def span(self) -> int:
        """Inputs from the first to the last that one output reads."""
        return (self.kernel - 1) * self.dilation + 1

    def affected(self, low: int, high: int) -> tuple[int, int]:
        """First and last output that may read an input from `low` to `high` (none: first > last).

        With a dilation some outputs between them read none of these inputs.
        """
        first = -(-(low + self.padding - self.span + 1) // self.stride)
        return first, (high + self.padding) // self.stride

    def needed(self, first: int, count: int) -> tuple[int, int]:
        """First input and number of inputs that `count` outputs from `first` on read."""
        return first * self.stride - self.padding, (count - 1) * self.stride + self.span


@dataclass(frozen=True)
class Span:
    """Where each window's change lies on one axis of a map of `size` values.

    Attributes
    ----------
    low, high
        First and last changed value, one of each a window; low > high where nothing changes.
    size
        Values of the axis.
    """

    low: tuple[int, ...]
    high: tuple[int, ...]
    size: int

    @cached_property
    def length(self) -> int:
        """Length of the crops: all windows have the longest's, and at least 1."""
        return max(1, *(h - low + 1 for low, h in zip(self.low, self.high, strict=True)))

    @cached_property
    def start(self) -> tuple[int, ...]:
        """First value of each crop, moved inwards where it would end outside the map."""
        last = self.size - self.length
        return tuple(min(max(low, 0), last) for low in self.low)

    def through(self, reach: Reach, size: int) -> Span:
        """The change after an operation whose output has `size` values."""
        low, high = [], []
        for a, b in zip(self.low, self.high, strict=True):
            if a <= b:
                first, last = reach.affected(a, b)
                first, last = max(first, 0), min(last, size - 1)
            if a > b or first > last:
                first, last = 0, -1  # nothing changes: the crop may lie anywhere
            low.append(first)
            high.append(last)
        return Span(tuple(low), tuple(high), size)

    def union(self, other: Span) -> Span:
        """The smallest spans that hold both changes."""
        pairs = [
            ((a, b), (c, d)) for a, b, c, d in zip(
                self.low, self.high, other.low, other.high, strict=True
            )
        ]  # fmt: skip
        joined = [_hull(one, two) for one, two in pairs]
        return Span(tuple(a for a, _ in joined), tuple(b for _, b in joined), self.size)


def _hull(one: tuple[int, int], two: tuple[int, int]) -> tuple[int, int]:
    if one[0] > one[1]:
        return two
    if two[0] > two[1]:
        return one
    return min(one[0], two[0]), max(one[1], two[1])
