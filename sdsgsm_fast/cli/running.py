"""What the commands over data sets share: model and images, progress, and how a run ends."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from .. import runs
from ..common.progress import Progress
from ..data import images as sources
from ..data.images import ImageSet
from ..data.models import LoadedModel
from .options import bars, load_model, numbers

EVERY = 10.0  # seconds between lines where the output is piped


def subject(
    model: str, weights: Path | None, mean: str | None, std: str | None, device: str,
    data: str, split: str, size: int | None,
) -> tuple[LoadedModel, ImageSet]:  # fmt: skip
    """The model, on a rank's own GPU where "cuda" stands for any, and the images."""
    local = os.environ.get("LOCAL_RANK")
    own = f"cuda:{local}" if device == "cuda" and local is not None else device
    return load_model(model, weights, mean, std, own), sources.load(data, split=split, size=size)


@contextmanager
def running(what: str, data: ImageSet, out: Path, quiet: bool) -> Iterator[tuple[Progress, Callable[[str], None]]]:
    """Say what begins; yields a progress callback and what prints a line. One rank speaks, if there are several."""
    console = Console(soft_wrap=True, highlight=False, quiet=quiet or os.environ.get("RANK", "0") != "0")
    console.print(f"{what}, {sources.described(data)}, into {out}")
    lines: list[str] = []
    try:
        with bars(console) as bar_of:
            yield _Told(console, bar_of("images")), lines.append
    except runs.RunStopped:
        typer.echo("sdsgsm: stopped after a shard; the same command again goes on", err=True)
        raise typer.Exit(130) from None
    for line in lines:
        console.print(line)


def given(**values: Any) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in values.items() if value is not None}


def fill_of(text: str | None) -> Any:
    """A fill, from "mean", "blur", "0.5" or "0.4,0.5,0.6"."""
    if text is None or text in ("mean", "blur"):
        return text
    values = numbers("--fill", text)
    return values if values is None or len(values) > 1 else values[0]


class _Told:
    """A bar with its rate on a terminal; lines now and then where the output is piped."""

    def __init__(self, console: Console, bar: Progress) -> None:
        self.console, self.bar = console, bar
        self.there, self.start = -1, 0.0  # images that were there at first, and when that was
        self.told, self.last = -1, time.monotonic()

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if self.there < 0:
            self.there, self.start = done, now
        rate = (done - self.there) / max(1e-9, now - self.start)
        speed = f", {rate:.1f} a second, {_time((total - done) / rate)} left" if rate > 0 else ""
        self.bar(speed.removeprefix(", "), done, total)
        due = now - self.last > EVERY or done == total
        if due and done != self.told and not self.console.is_terminal:
            self.told, self.last = done, now
            self.console.print(f"{done}/{total} images{speed}")


def _time(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 100
        else f"{seconds / 60:.0f} min"
        if seconds < 6000
        else f"{seconds / 3600:.1f} h"
    )
