"""The command `sdsgsm demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from ..common.files import write_bytes, write_json
from ..common.machine import machine
from ..kernels import backends
from . import demo as scenes
from .options import bars, check_backend, check_device, check_folder
from .tables import markdown, plain


def demo(
    backend: Annotated[
        str, typer.Option(help=f"One of: {', '.join(backends.NAMES)}.", callback=check_backend)
    ] = "auto",
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda or cuda:N.", callback=check_device)] = "cpu",
    per_class: Annotated[int, typer.Option(min=1, max=1000, help="Test crops of each of the ten photographs.")] = 32,
    eps: Annotated[float, typer.Option(min=0.1, max=255, help="ε, in units of 1/255: 8 means 8/255.")] = 8.0,
    steps: Annotated[int, typer.Option(min=1, max=10_000, help="Largest number of updates.")] = 20,
    out: Annotated[
        Path,
        typer.Option(help="Folder for table.json, table.md, figure.png.", callback=check_folder),
    ] = Path("sdsgsm-demo"),
) -> None:
    """Attack PhotoNet on crops of real photographs: a table, its JSON and a figure."""
    try:
        backends.choose(backend, torch.empty(0, device=device))
    except (RuntimeError, ValueError) as error:
        raise typer.BadParameter(str(error), param_hint="'--backend'") from error
    scene = scenes.load_scene(per_class, device)
    accuracy = scene.accuracy()
    console = Console(soft_wrap=True, highlight=False)
    console.print(
        f"PhotoNet on {len(scene.images)} test crops of ten photographs: "
        f"clean accuracy {accuracy:.1%}; ε = {eps:g}/255, α = ε/8, {steps} steps"
    )
    outcomes = []
    with bars(console) as bar_of:
        for outcome in scenes.run_attacks(scene, eps=eps / 255, steps=steps, backend=backend, progress=bar_of):
            outcomes.append(outcome)
            if not console.is_terminal:
                console.print(f"{outcome[0].name}: {outcome[0].seconds:.1f} s")
    rows = [row for row, _ in outcomes]
    typer.echo("\n" + plain(rows))
    console.print(
        "Means over the crops that the clean model gets right. success: share of them fooled;\n"
        "8-bit: the same after rounding to pixel values; s: seconds of one run on this machine."
    )
    settings = {"eps": eps / 255, "steps": steps, "images": len(scene.images), "backend": backend}
    content = {
        "settings": {**settings, "device": device},
        "clean_accuracy": accuracy,
        "machine": machine(),
        "rows": [row.as_dict() for row in rows],
    }
    write_json(out / "table.json", content)
    write_bytes(out / "table.md", markdown(rows).encode())
    scenes.draw_figure(out / "figure.png", scene, outcomes[-1][1], eps=eps / 255)  # SD-SGSM's
    console.print(f"wrote table.json, table.md and figure.png to {out}")
