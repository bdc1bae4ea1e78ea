"""Tiles of maps that nobody has written out: a convolution may put them together as it reads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import ops
from ..backends.calls import Paste


@dataclass(frozen=True, slots=True)
class Tiles:
    """Clean maps with crops pasted in, as `ops.paste` takes them.

    Attributes
    ----------
    clean, crops, image, row, col, rows, cols, height, width, pad, backend
        The arguments of `ops.paste`.
    """

    clean: Tensor
    crops: Tensor | None
    image: Tensor
    row: Tensor
    col: Tensor
    rows: Tensor
    cols: Tensor
    height: int
    width: int
    pad: float
    backend: str

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(n, C, height, width)."""
        return (len(self.image), self.clean.shape[1], self.height, self.width)

    def written(self) -> Tensor:
        """The tiles, (n, C, height, width), channels_last."""
        return ops.paste(
            *(self.clean, self.crops, self.image, self.row, self.col, self.rows, self.cols),
            height=self.height, width=self.width, pad=self.pad, backend=self.backend,
        )  # fmt: skip

    def call(self) -> Paste:
        """The arguments as a kernel takes them."""
        layout = torch.channels_last
        return Paste(
            self.clean.contiguous(memory_format=layout),
            None if self.crops is None else self.crops.contiguous(memory_format=layout),
            *(self.image, self.row, self.col, self.rows, self.cols, self.pad),
        )


def written(x: Tensor | Tiles) -> Tensor:
    """Tiles as a tensor; a tensor as it is."""
    return x.written() if isinstance(x, Tiles) else x
