"""The command `sdsgsm report`: a set as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .. import runs
from ..data import images as sources
from ..data.images import ImageSet
from .options import Size, Split, bars
from .run_options import Quiet


def report(
    folder: Annotated[Path, typer.Argument(help="A folder that sdsgsm attack or occlude has made.")],
    out: Annotated[Path | None, typer.Option(help="The page; if not given, report.html in the folder.")] = None,
    data: Annotated[
        str | None,
        typer.Option(help="The clean images; if not given, those that the set names, if they are there."),
    ] = None,
    split: Split = "test",
    size: Size = None,
    gallery: Annotated[int, typer.Option(min=1, help="Images of the gallery at most, evenly chosen.")] = 10_000,
    quiet: Quiet = False,
) -> None:
    """Make a page of a set: figures and a gallery, one HTML file that needs nothing else."""
    console = Console(soft_wrap=True, highlight=False, quiet=quiet)
    found = _named(folder, split, size, console) if data is None else sources.load(data, split=split, size=size)
    with bars(console) as bar_of:
        page = runs.write_report(folder, out, data=found, gallery=gallery, progress=bar_of("report"))
    console.print(f"{page}: {page.stat().st_size / 2**20:.1f} MB")


def _named(folder: Path, split: str, size: int | None, console: Console) -> ImageSet | None:
    """The images that a set was made of, if they are found under the name that it has of them."""
    stored = runs.load(folder)
    name = stored.manifest.data["name"]
    try:
        found = sources.load(name, split=split, size=size)
        if runs.same_data(found, stored):
            return found
        reason = "holds other images now, or needs --split or --size"
    except (ValueError, OSError) as error:
        reason = str(error)
    console.print(f"without clean images: {name}: {reason}; --data gives them")
    return None
