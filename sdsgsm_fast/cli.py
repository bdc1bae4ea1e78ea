"""The command `sdsgsm`."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import numpy as np
import torch

from . import __version__, backends, checks
from .progress import Progress

try:
    import typer
    from rich import box
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars
    from rich.table import Table
except ModuleNotFoundError as error:
    sys.exit(f"sdsgsm: the package {error.name!r} is missing: pip install 'sdsgsm-fast[cli]'")

app = typer.Typer(
    help="SD-SGSM adversarial examples and occlusion maps for image classifiers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sdsgsm-fast {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Take the options that come before a command."""


@app.command()
def info() -> None:
    """Tell versions, devices and backends, and why a backend is missing."""
    table = Table(show_header=False, box=None)
    for name, value in machine().items():
        table.add_row(name, str(value))
    for name, state in backends.report().items():
        table.add_row(f"backend {name}", state)
    Console(soft_wrap=True).print(table, highlight=False)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for table.json and figure.png.")] = Path(
        "sdsgsm-demo"
    ),
    per_class: Annotated[
        int, typer.Option(min=1, max=1000, help="Test crops of each of the ten photographs.")
    ] = 32,
    eps: Annotated[float, typer.Option(min=0.1, max=255, help="ε, in units of 1/255.")] = 8.0,
    steps: Annotated[int, typer.Option(min=1, help="Largest number of updates.")] = 20,
    backend: Annotated[str, typer.Option(help=f"One of: {', '.join(backends.NAMES)}.")] = "auto",
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, …")] = "cpu",
) -> None:
    """Attack PhotoNet on crops of real photographs: a table, its JSON and a figure."""
    from . import demo as scenes
    from .report import COLUMNS, cells, draw_figure, markdown, write_json, write_text

    console = Console(soft_wrap=True)
    checks.choice("backend", backend, backends.NAMES)
    scene = scenes.load_scene(per_class, device)
    console.print(
        f"PhotoNet on {len(scene.images)} test crops of ten photographs: "
        f"clean accuracy {scene.accuracy:.1%}; ε = {eps:g}/255, α = ε/8, {steps} steps",
        highlight=False,
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "attack" else "right", no_wrap=True)
    outcomes = []
    with _bars(console) as bar_of:
        for outcome in scenes.run_attacks(
            scene, eps=eps / 255, steps=steps, backend=backend, progress=bar_of
        ):
            outcomes.append(outcome)
            row = outcome[0]
            table.add_row(*cells(row))
            if not console.is_terminal:
                console.print(f"{row.name}: {row.seconds:.1f} s", highlight=False)
    console.print(table)
    console.print(
        "Means over the crops that the clean model gets right. success: share of them fooled;\n"
        "8-bit: the same after rounding to pixel values; s: seconds of one run on this machine.",
        highlight=False,
    )
    rows = [row for row, _ in outcomes]
    settings = {"eps": eps / 255, "steps": steps, "images": len(scene.images), "backend": backend}
    content = {
        "settings": settings,
        "clean_accuracy": scene.accuracy,
        "machine": machine(),
        "rows": [{"attack": r.name, "seconds": r.seconds, **r.metrics.as_dict()} for r in rows],
    }
    write_json(out / "table.json", content)
    write_text(out / "table.md", markdown(rows))
    draw_figure(out / "figure.png", scene, outcomes[-1][1], eps=eps / 255)  # SD-SGSM is last
    console.print(f"wrote table.json, table.md and figure.png to {out}", highlight=False)


@contextmanager
def _bars(console: Console) -> Iterator[Callable[[str], Progress]]:
    """Yield a function that gives each attack a progress bar of its own."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    quiet = not console.is_terminal
    with Bars(*columns, TimeElapsedColumn(), console=console, disable=quiet) as bars:

        def bar_of(name: str) -> Progress:
            task = bars.add_task(name, total=None)

            def advance(stage: str, done: int, total: int) -> None:
                bars.update(task, description=f"{name}: {stage}", completed=done, total=total)

            return advance

        yield bar_of


def machine() -> dict[str, str | int]:
    """Versions and hardware that a figure depends on."""
    cuda = torch.cuda.is_available()
    return {
        "sdsgsm-fast": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "cpu": _cpu_name(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if cuda else "none",
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main() -> None:
    """Run the command line; bad input ends with one line and exit code 2."""
    try:
        app()
    except (ValueError, TypeError, ModuleNotFoundError, RuntimeError, OSError) as error:
        sys.stderr.write(f"sdsgsm: {error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
