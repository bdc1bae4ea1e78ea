"""Window geometry of the zero-out operator: METHOD.md, section 1. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral

Pair = int | tuple[int, int]


def as_pair(name: str, value: Pair) -> tuple[int, int]:
    """Return (rows, columns) of an int or a pair.

    Raises
    ------
    ValueError
        If `value` is neither a positive int nor a pair of them.
    """
    pair = tuple(value) if isinstance(value, Sequence) else (value, value)
    valid = all(isinstance(v, Integral) and not isinstance(v, bool) and v > 0 for v in pair)
    if len(pair) != 2 or not valid:
        raise ValueError(f"{name}: expected a positive int or a pair of them, found {value!r}")
    return int(pair[0]), int(pair[1])


@dataclass(frozen=True)
class Windows:
    """The grid of windows over an image; window k = row·cols + column, in row-major order.

    Attributes
    ----------
    height, width
        Size of the image in pixels.
    patch, stride
        Size and distance of the windows, (rows, columns) in pixels. The last windows of a row or
        column may be cut by the border.
    """

    height: int
    width: int
    patch: tuple[int, int]
    stride: tuple[int, int]

    @classmethod
    def over(cls, height: int, width: int, patch: Pair, stride: Pair | None = None) -> Windows:
        """Check the geometry and build the grid; `stride` defaults to `patch`.

        Raises
        ------
        ValueError
            Unless 1 ≤ stride ≤ patch ≤ image on both axes.
        """
        p = as_pair("patch", patch)
        s = p if stride is None else as_pair("stride", stride)
        if p[0] > height or p[1] > width:
            raise ValueError(f"patch: must fit into the image of {height}×{width}, found {p}; images are (B, C, H, W)")
        if s[0] > p[0] or s[1] > p[1]:
            raise ValueError(f"stride: must not exceed the patch {p}, found {s}")
        return cls(height, width, p, s)

    @property
    def rows(self) -> int:
        """Rows of windows: ⌈(H − ph)/sh⌉ + 1."""
        return -(-(self.height - self.patch[0]) // self.stride[0]) + 1

    @property
    def cols(self) -> int:
        """Columns of windows: ⌈(W − pw)/sw⌉ + 1."""
        return -(-(self.width - self.patch[1]) // self.stride[1]) + 1

    @property
    def overhang(self) -> tuple[int, int]:
        """How far the last windows would reach over the bottom and the right border."""
        return (
            (self.rows - 1) * self.stride[0] + self.patch[0] - self.height,
            (self.cols - 1) * self.stride[1] + self.patch[1] - self.width,
        )

    def __len__(self) -> int:
        return self.rows * self.cols

    def __getitem__(self, k: int) -> tuple[slice, slice]:
        """Rows and columns that window k covers."""
        if not 0 <= k < len(self):
            raise IndexError(f"window {k} of {len(self)}")
        top, left = k // self.cols * self.stride[0], k % self.cols * self.stride[1]
        bottom, right = top + self.patch[0], left + self.patch[1]
        return slice(top, min(bottom, self.height)), slice(left, min(right, self.width))

    def __iter__(self) -> Iterator[tuple[slice, slice]]:
        return (self[k] for k in range(len(self)))
