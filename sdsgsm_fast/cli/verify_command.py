"""The command `sdsgsm verify`: a set read and judged again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import runs
from ..data import images as sources
from ..model.classifier import Classifier
from .options import Device, Mean, Size, Split, Std, Weights, load_model


def verify(
    folder: Annotated[Path, typer.Argument(help="A folder that sdsgsm attack or occlude has made.")],
    model: Annotated[
        str | None, typer.Option(help="The model that was asked: verdicts are taken again.")
    ] = None,
    weights: Weights = None,
    data: Annotated[
        str | None, typer.Option(help="The clean images: labels and distances are compared; with --model, maps, too.")
    ] = None,
    split: Split = "test",
    size: Size = None,
    mean: Mean = None,
    std: Std = None,
    device: Device = "cpu",
) -> None:  # fmt: skip
    """Read a set again: every byte, every verdict; the exit status is 1 if something is wrong."""
    classifier = None
    if model is not None:
        loaded = load_model(model, weights, mean, std, device)
        classifier = Classifier(loaded.model, mean=loaded.mean, std=loaded.std)
    found = None if data is None else sources.load(data, split=split, size=size)
    report = runs.verify(folder, classifier=classifier, data=found)
    for line in report.checked:
        typer.echo(f"checked {line}")
    for line in report.problems:
        typer.echo(f"problem: {line}")
    typer.echo(f"{folder}: {'sound' if report.sound else 'not sound'}")
    if not report.sound:
        raise typer.Exit(1)
