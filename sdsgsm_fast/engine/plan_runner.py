"""Runs a plan: clean maps once an image, then only what each window changes.

After Krypton (Nakandala et al., SIGMOD 2019), for any graph that a trace gives, in chunks of
windows of one or several images; the dense plan is the special case without tiles.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..common.windows import Windows
from ..kernels.calls import Paste
from .layer import Layer, written
from .network import channels_last
from .plan import Cut, Plan, table

FILLING = -1
"""Key among the clean maps of the images whose pixels windows are filled with."""


class PlanRunner:
    """A plan made ready for a device.

    Parameters
    ----------
    plan
        What to do.
    fill
        (C,), what zeroed-out pixels become, as the model takes them; None for what the maps of
        `FILLING` hold.
    windows
        What is zeroed out.
    device, backend
        Who pastes; see `ops.paste`.
    """

    def __init__(self, plan: Plan, fill: Tensor | None, windows: Windows, device: torch.device, backend: str) -> None:
        self.plan, self.backend, self.patch = plan, backend, windows.patch
        self.steps = plan.network.steps
        self.fill = None
        if fill is not None:
            self.fill = channels_last(fill.to(plan.network.dtype)[None, :, None, None].expand(1, -1, *windows.patch))
        cuts = [cut for action in plan.actions for cut in action.cuts if cut is not None]
        self.tables = {id(cut): (table(cut.rows, device), table(cut.cols, device)) for cut in cuts}
        starts = [[(k * step, 0, 0) for k in places]
                  for step, places in zip(windows.stride, (plan.rows, plan.cols), strict=True)]  # fmt: skip
        self.starts = [torch.tensor(places, dtype=torch.int32, device=device) for places in starts]
        self.dying = plan.network.dying({plan.network.output})

    def logits(self, clean: dict[int, Tensor], image: Tensor, row: Tensor, col: Tensor) -> Tensor:
        """Logits (n, K) of windows of images, (n,) int32 each.

        `clean` are the maps of the plan's sources and the constants; `image` counts in them, `row`
        and `col` in the plan's rows and columns.
        """
        with torch.inference_mode(), torch.autocast(image.device.type, enabled=False):
            return self._logits(clean, (image, row, col))

    def _logits(self, clean: dict[int, Tensor], where: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        values: dict[int, Any] = {0: self.fill}
        if self.fill is None:
            (image, row, col), (rows, cols), (height, width) = where, self.starts, self.patch
            taken = Paste(clean[FILLING], None, image, row, col, rows, cols, height, width, 0.0)
            values[0] = written(taken, self.backend)
        whole: dict[int, Tensor] = {}
        for k, (step, action) in enumerate(zip(self.steps, self.plan.actions, strict=True)):
            if step.constant is not None:
                values[k] = step.constant
            elif action.tiled:
                assert step.tile is not None
                maps = [
                    values[i] if cut is None else self._tiles(cut, clean, values, where)
                    for i, cut in zip(step.inputs, action.cuts, strict=True)
                ]
                # A layer decides whether it needs them written out.
                takes = isinstance(step.tile, Layer)
                values[k] = step.tile(*(maps if takes else (written(x, self.backend) for x in maps)))
            elif k:
                for cut in action.cuts:
                    if cut is not None and cut.source not in whole:
                        tiles = self._tiles(cut, clean, values, where)
                        whole[cut.source] = written(tiles, self.backend)
                values[k] = step.run(len(where[0]), *(whole.get(i, values[i]) for i in step.inputs))
            for i in self.dying[k]:
                values.pop(i, None)
                whole.pop(i, None)
        return values[self.plan.network.output]  # type: ignore[no-any-return]

    def _tiles(
        self, cut: Cut, clean: dict[int, Tensor], values: dict[int, Any],
        where: tuple[Tensor, Tensor, Tensor],
    ) -> Paste:  # fmt: skip
        """A step's tiles: its clean map with its crops in their places."""
        constant = self.steps[cut.source].constant
        image, row, col = where
        return Paste(
            clean[cut.source], None if constant is not None else values[cut.source],
            image if constant is None else torch.zeros_like(image), row, col,
            *self.tables[id(cut)], *cut.size, cut.pad,
        )  # fmt: skip
