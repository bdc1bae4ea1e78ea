"""What commands share: checks of options, and progress bars."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from ..common.progress import Progress
from ..data import models
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


Model = Annotated[
    str,
    typer.Option(help="photos, package.module:factory, file.py:factory, a TorchScript or torch.export file, "
                      "timm:NAME, torchvision:NAME or hf:DIRECTORY."),
]  # fmt: skip
Weights = Annotated[Path | None, typer.Option(help=".safetensors, for a factory, timm or torchvision.")]
Data = Annotated[
    str,
    typer.Option(help="photos, CIFAR in python format (folder or tar.gz), a folder a class or a tar of one, "
                      ".npz or .safetensors."),
]  # fmt: skip
Split = Annotated[str, typer.Option(help="test or train, of CIFAR and of photos.")]
Size = Annotated[int | None, typer.Option(min=1, help="Side to which image files are resized and cut.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.", callback=check_device)]
Mean = Annotated[str | None, typer.Option(help="In place of the model's own: 0.5 or 0.4,0.5,0.6.")]
Std = Annotated[str | None, typer.Option(help="The same; both go together.")]


def load_model(model: str, weights: Path | None, mean: str | None, std: str | None, device: str) -> models.LoadedModel:
    """The model on its device, with the normalisation that was asked for, else its own.

    Raises
    ------
    typer.BadParameter
        If one of mean and standard deviation is given without the other.
    """
    loaded = models.load(model, weights=weights)
    given = (numbers("--mean", mean), numbers("--std", std))
    if (given[0] is None) != (given[1] is None):
        raise typer.BadParameter("expected --mean and --std together", param_hint="--mean")
    loaded.model.to(device)
    return loaded if given[0] is None else replace(loaded, mean=given[0], std=given[1])
