"""The command `sdsgsm compare`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ..attack import Settings
from ..common.files import write_bytes, write_json
from ..common.machine import machine
from ..common.progress import Progress
from ..data import images as sources
from ..data import models
from ..kernels import backends
from ..metrics import mean
from ..model.classifier import Classifier
from . import compare as runs
from .figures import draw_curves, draw_passes
from .options import (
    Data,
    Device,
    Mean,
    Model,
    Size,
    Split,
    Std,
    Weights,
    bars,
    check_backend,
    check_folder,
    load_model,
    numbers,
)
from .tables import COMPARE, COMPARE_LPIPS, Row, csv_text, markdown, plain

Told = Callable[[str], Progress | None]


def compare(
    model: Model = "photos", weights: Weights = None, data: Data = "photos", split: Split = "test", size: Size = None,
    limit: Annotated[int, typer.Option(min=1, help="Images of this library's attacks; spread over the data.")] = 256,
    mean: Mean = None, std: Std = None,
    eps: Annotated[float, typer.Option(min=0.1, max=255, help="ε, in units of 1/255.")] = 8.0,
    steps: Annotated[int, typer.Option(min=1, max=10_000, help="Largest number of updates, of this library's.")] = 20,
    attack: Annotated[
        list[str] | None, typer.Option(help="An attack of the table, again for more; none: all of this library.")
    ] = None,
    rival: Annotated[
        list[str] | None,
        typer.Option(help=f"An attack of another library, again for more: {', '.join(runs.RIVALS)}; or all."),
    ] = None,
    rival_limit: Annotated[int, typer.Option(min=1, help="Images of rivals, which are slow; evenly chosen.")] = 64,
    curve: Annotated[str, typer.Option(help="ε of the figures, in units of 1/255; empty for no such figures.")] = "1,4",
    sweep: Annotated[
        list[str] | None,
        typer.Option(help=f"NAME=VALUE,… of {', '.join(runs.SWEPT)}, again for more; in place of the table."),
    ] = None,
    base: Annotated[str, typer.Option(help="The attack whose settings are swept.")] = "SD-SGSM",
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images at once; none: what suits the device.")] = None,
    backend: Annotated[str, typer.Option(help=", ".join(backends.NAMES) + ".", callback=check_backend)] = "auto",
    precision: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    device: Device = "cpu",
    out: Annotated[Path, typer.Option(help="Folder of results.", callback=check_folder)] = Path("sdsgsm-compare"),
) -> None:  # fmt: skip
    """Compare attacks on a model and images: table, CSV, JSON, Markdown and figures."""
    plan = _Plan(
        attacks=_known("--attack", attack, runs.ATTACKS) if attack else list(runs.ATTACKS),
        rivals=list(runs.RIVALS) if rival == ["all"] else _known("--rival", rival or [], runs.RIVALS),
        rival_limit=rival_limit, eps=eps / 255, steps=steps, curve=_curve(curve),
        swept=[runs.parse_sweep(text) for text in sweep or []], base=_known("--base", [base], runs.ATTACKS)[0],
    )  # fmt: skip
    console = Console(soft_wrap=True, highlight=False)
    common: Settings = {"backend": backend, "batch_size": batch_size, "precision": precision}
    loaded = load_model(model, weights, mean, std, device)
    origin = "from the model's source" if mean is None else "from --mean and --std"
    subject, about = _subject(model, loaded, origin, data, split, size, limit, device, common)
    for line in about["lines"]:
        console.print(line)
    rows, points = _rows(subject, plan, console)
    settings = {"eps": plan.eps, "steps": steps, "limit": limit, "rival_limit": rival_limit, **common, "device": device}
    content = {"settings": settings, "subject": about, "machine": machine()}
    _write(out, rows, points, content, console, figures=not plan.swept)


@dataclass(frozen=True)
class _Plan:
    """What is to be run; ε in units of the images."""

    attacks: list[str]
    rivals: list[str]
    rival_limit: int
    eps: float
    steps: int
    curve: list[float]
    swept: list[tuple[str, list[float | None]]]
    base: str


def _curve(text: str) -> list[float]:
    """ε of the figures."""
    found = [value / 255 for value in numbers("--curve", text) or ()] if text.strip() else []
    if any(not 0 < value <= 1 for value in found):
        raise typer.BadParameter(f"expected values above 0, up to 255, found {text!r}", param_hint="--curve")
    return found


def _rows(subject: runs.Subject, plan: _Plan, console: Console) -> tuple[list[Row], list[Row]]:
    """Rows of the table, and those of the curves."""
    rows: list[Row] = []
    points: list[Row] = []
    with bars(console) as bar_of:
        told = _announcing(console, bar_of)
        if plan.swept:
            rows += runs.sweep(subject, plan.base, plan.swept, eps=plan.eps, steps=plan.steps, told=told)
            return rows, points
        for name in plan.attacks:
            rows.append(runs.run_own(subject, name, eps=plan.eps, steps=plan.steps, progress=told(name)))
        points += runs.curves(subject, plan.attacks, plan.curve, plan.steps, told)
        rows += _rival_rows(subject.spread(plan.rival_limit), plan, console, told)
    return rows, points


def _known(option: str, chosen: Sequence[str], known: Any) -> list[str]:
    for name in chosen:
        if name not in known:
            raise typer.BadParameter(f"{name!r} is not one of {', '.join(known)}", param_hint=option)
    return list(chosen)


def _subject(
    model: str, loaded: models.LoadedModel, origin: str, data: str, split: str, size: int | None, limit: int,
    device: str, common: Settings,
) -> tuple[runs.Subject, dict[str, Any]]:  # fmt: skip
    """The model and images that options name, and what to say of them."""
    found = sources.load(data, split=split, size=size)
    if not len(found):
        raise ValueError(f"{data}: holds no images")
    chosen = runs.spread(len(found), limit)
    images, labels = (tensor.to(device) for tensor in found.rows(chosen))
    mean_, std_ = loaded.mean, loaded.std
    known = mean_ is not None or std_ is not None
    classifier = Classifier(loaded.model, mean=mean_, std=std_, batch_size=common.get("batch_size"))
    classifier.check(images)
    accuracy = mean((classifier.predicted(images) == labels).double())
    lines = [
        f"{loaded.name} on {len(chosen)} of {sources.described(found)}: clean accuracy {accuracy:.1%}",
        f"normalisation {origin}: mean {mean_ or 0}, std {std_ or 1}"
        if known
        else "normalisation none: the model gets images in [0, 1]",
    ]
    about = {"model": model, "data": data, "images": len(chosen), "clean_accuracy": accuracy, "lines": lines}
    return runs.Subject(loaded.model, mean_, std_, images, labels, common), about


def _announcing(console: Console, bar_of: Callable[[str], Progress]) -> Told:
    """Bars on a terminal; a line for each run where the output is piped."""

    def told(name: str) -> Progress | None:
        if console.is_terminal:
            return bar_of(name)
        console.print(f"running {name}")
        return None

    return told


def _rival_rows(subject: runs.Subject, plan: _Plan, console: Console, told: Told) -> list[Row]:
    """Rows of other libraries' attacks; what is missing is said and left out."""
    rows = []
    for name in plan.rivals:
        rival = runs.RIVALS[name]
        reason = rival.missing()
        if reason is not None:
            console.print(f"{name}: left out, {reason}; pip install 'sdsgsm-fast[compare]'")
            continue
        told(f"{name} ({rival.library})")
        rows.append(runs.run_rival(subject, rival, eps=plan.eps))
    return rows


def _write(
    out: Path, rows: list[Row], points: list[Row], content: dict[str, Any], console: Console, *, figures: bool
) -> None:
    """Show the table, and write it with its figures."""
    columns = COMPARE_LPIPS if any(row.lpips is not None for row in rows) else COMPARE
    if console.is_terminal:
        table = Table(*columns, box=None, header_style="bold")
        for column in table.columns[1:]:
            column.justify = "right"
        for row in rows:
            table.add_row(*row.cells(columns))
        console.print(table)
    else:
        typer.echo("\n" + plain(rows, columns))
    console.print(
        "Means over the images that the clean model gets right. 8-bit: still fooled after rounding to pixel values; "
        "passes: forward and backward, an image; ms/image: on this machine."
    )
    counts = sorted({row.metrics.images for row in rows if "library" in row.settings})
    if counts:
        console.print(f"Rows of other libraries: {counts[0]} images.")
    write_bytes(out / "table.md", markdown(rows, columns).encode())
    write_bytes(out / "table.csv", csv_text(rows).encode())
    names = ["table.md", "table.csv", "table.json"]
    content = {**content, "rows": [row.as_dict() for row in rows], "curves": [row.as_dict() for row in points]}
    write_json(out / "table.json", content)
    if figures:
        own = [row for row in rows if "library" not in row.settings]
        if points:
            every = sorted([*points, *own], key=lambda row: float(row.settings["eps"]))
            draw_curves(out / "success-l2.png", every, ssim=False)
            draw_curves(out / "success-ssim.png", every, ssim=True)
            names += ["success-l2.png", "success-ssim.png"]
        draw_passes(out / "l2-passes.png", rows)
        names.append("l2-passes.png")
    console.print(f"wrote {', '.join(names[:-1])} and {names[-1]} to {out}")
