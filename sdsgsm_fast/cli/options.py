"""What commands share: checks of options, and progress bars."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from ..common.progress import Progress
from ..kernels import backends


def check_backend(name: str) -> str:
    """A backend's name."""
    if name not in backends.NAMES:
        raise typer.BadParameter(f"{name!r} is not one of {', '.join(backends.NAMES)}")
    return name


def check_device(name: str) -> str:
    """The name of a device that is there."""
    if name.split(":")[0] not in ("cpu", "cuda"):
        raise typer.BadParameter(f"{name!r} is not cpu, cuda or cuda:N")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise typer.BadParameter(f"{name!r}: {str(error).splitlines()[0]}") from error
    return name


def check_folder(path: Path) -> Path:
    """Make the folder before any work, so that minutes of it are not lost."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise typer.BadParameter(f"cannot write to the folder {path}: {error.strerror}") from error
    return path


@contextmanager
def bars(console: Console) -> Iterator[Callable[[str], Progress]]:
    """Yield a function that gives each attack a progress bar of its own."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    quiet = not console.is_terminal
    with Bars(*columns, TimeElapsedColumn(), console=console, disable=quiet) as shown:

        def bar_of(name: str) -> Progress:
            task = shown.add_task(name, total=None)

            def advance(stage: str, done: int, total: int) -> None:
                shown.update(task, description=f"{name}: {stage}", completed=done, total=total)

            return advance

        yield bar_of


def numbers(name: str, text: str | None) -> tuple[float, ...] | None:
    """Read "0.5" or "0.4,0.5,0.6"; None stays None."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(
            f"expected numbers with commas between them, found {text!r}", param_hint=name
        ) from None
