"""A model as a list of operations: a small compiler behind one door.

`CompiledWindows` gives the logits of zeroed-out copies, `prepare_surrogate` a surrogate that gives logits and
gradients of images, `GraphedFunction` replays passes as CUDA graphs. docs/engine.md tells how.
"""

from .graphs import PATIENCE, GraphedFunction, can_be_recorded, rows_worth_recording
from .surrogate import Surrogate, prepare_surrogate
from .window_runner import CompiledWindows

__all__ = [
    "PATIENCE",
    "CompiledWindows",
    "GraphedFunction",
    "Surrogate",
    "can_be_recorded",
    "prepare_surrogate",
    "rows_worth_recording",
]
