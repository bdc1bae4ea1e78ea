"""Progress of long work: a callback, or a line on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called as ``progress(stage, done, total)``; stages are "occlusion" (windows) and "attack"
(images that are done; of a stream, the total is what has come in so far)."""


def reporter(progress: bool | Progress) -> Progress | None:
    """Return the callback that `progress` asks for: itself, a terminal line, or none."""
    if callable(progress):
        return progress
    return _terminal_line if progress else None


def _terminal_line(stage: str, done: int, total: int) -> None:
    """Rewrite one line of standard error; end it when the stage is done."""
    sys.stderr.write(f"\r{stage} {done}/{total}" + ("\n" if done == total else ""))
    sys.stderr.flush()
