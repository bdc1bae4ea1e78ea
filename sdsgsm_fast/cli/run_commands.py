"""The commands `sdsgsm attack` and `sdsgsm verify`: a data set into a folder, and a folder read again."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from .. import presets, runs
from ..attack import Attack
from ..common.progress import Progress
from ..data import images as sources
from ..domains import Gradient, Occlusion
from ..model.classifier import Classifier
from .attack_options import (
    DOMAINS,
    Alpha,
    Backend,
    Background,
    BatchSize,
    Coverage,
    CudaGraphs,
    Decay,
    Domain,
    EarlyStop,
    Eps,
    Fill,
    Gain,
    Growth,
    KeepDomain,
    KeepScores,
    Levels,
    Limit,
    Loss,
    MaxMemory,
    Method,
    Normalize,
    Out,
    Patch,
    Precision,
    Quiet,
    RandomStart,
    Refine,
    Relax,
    Restarts,
    Rule,
    Score,
    Seed,
    ShardSize,
    Steps,
    Stride,
    Threshold,
    step,
)
from .options import Data, Device, Mean, Model, Size, Split, Std, Weights, bars, load_model, numbers

PRESETS: dict[str, Callable[..., Attack]] = {
    name: kind for name, kind in vars(presets).items()
    if isinstance(kind, type) and issubclass(kind, Attack) and kind not in (Attack, presets.Preset)
}  # fmt: skip
EVERY = 10.0  # seconds between lines where the output is piped

Preset = Annotated[str, step("--attack", help=f"{', '.join(PRESETS)}.")]


def attack(
    out: Out, model: Model = "photos", weights: Weights = None, data: Data = "photos", split: Split = "test",
    size: Size = None, mean: Mean = None, std: Std = None, limit: Limit = None, shard_size: ShardSize = None,
    keep_domain: KeepDomain = False, keep_scores: KeepScores = False, quiet: Quiet = False,
    preset: Preset = "SDSGSM", eps: Eps = 8.0, alpha: Alpha = None, steps: Steps = None, gain: Gain = None,
    decay: Decay = None, normalize: Normalize = None, loss: Loss = None, random_start: RandomStart = None,
    restarts: Restarts = None, early_stop: EarlyStop = None, growth: Growth = None, refine: Refine = None,
    levels: Levels = None, seed: Seed = 0, domain: Domain = None, patch: Patch = None, stride: Stride = None,
    score: Score = None, fill: Fill = None, method: Method = None, rule: Rule = None, coverage: Coverage = None,
    threshold: Threshold = None, background: Background = None, relax: Relax = None, batch_size: BatchSize = None,
    device: Device = "cpu", precision: Precision = "auto", backend: Backend = "auto", max_memory: MaxMemory = None,
    cuda_graphs: CudaGraphs = None,
) -> None:  # fmt: skip
    """Attack a data set into a folder; the same command again goes on where it was stopped."""
    if preset not in PRESETS:
        raise typer.BadParameter(f"{preset!r} is not one of {', '.join(PRESETS)}", param_hint="--attack")
    chosen = {
        "steps": steps, "gain": gain, "decay": decay, "normalize": normalize, "loss": loss,
        "random_start": random_start, "restarts": restarts, "early_stop": early_stop, "growth": growth,
        "refine": refine, "background": background,
    }  # fmt: skip
    settings: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
    settings |= {"eps": eps / 255, "seed": seed, "levels": levels, "precision": precision, "backend": backend}
    settings |= {"batch_size": batch_size, "max_memory": max_memory, "cuda_graphs": cuda_graphs}
    settings |= {} if alpha is None else {"alpha": alpha / 255}
    settings |= {} if relax is None else {"relax": None if relax == "none" else _number("--relax", relax)}
    windows = {"patch": patch, "stride": stride, "score": score, "fill": _fill(fill), "method": method}
    cut = {"rule": rule, "coverage": coverage, "threshold": threshold}
    settings |= _domain(domain, _given(windows), _given(cut))
    loaded, found = load_model(model, weights, mean, std, _own(device)), sources.load(data, split=split, size=size)
    made = PRESETS[preset](loaded.model, mean=loaded.mean, std=loaded.std, **settings)
    keep = tuple(name for name, wanted in (("domain", keep_domain), ("scores", keep_scores)) if wanted)
    console = Console(soft_wrap=True, highlight=False, quiet=quiet or os.environ.get("RANK", "0") != "0")
    console.print(f"{preset} on {loaded.name}, {sources.described(found)}, into {out}")
    try:
        with bars(console) as bar_of:
            summary = runs.attack_dataset(
                made, found, out, limit=limit, shard_size=shard_size, keep=keep, model_name=loaded.name,
                progress=_Told(console, bar_of("attack")),
            )  # fmt: skip
    except runs.RunStopped:
        typer.echo("sdsgsm: stopped after a shard; the same command again goes on", err=True)
        raise typer.Exit(130) from None
    console.print(_described(summary))


def verify(
    folder: Annotated[Path, typer.Argument(help="A folder that sdsgsm attack has made.")],
    model: Annotated[
        str | None, typer.Option(help="The model that was attacked: verdicts are taken again.")
    ] = None,
    weights: Weights = None,
    data: Annotated[str | None, typer.Option(help="The clean images: distances are compared.")] = None,
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


def _own(device: str) -> str:
    """A rank's own GPU where "cuda" stands for any."""
    local = os.environ.get("LOCAL_RANK")
    return f"cuda:{local}" if device == "cuda" and local is not None else device


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _number(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"expected a number or none, found {text!r}", param_hint=option) from None


def _fill(text: str | None) -> Any:
    if text is None or text in ("mean", "blur"):
        return text
    values = numbers("--fill", text)
    return values if values is None or len(values) > 1 else values[0]


def _domain(name: str | None, windows: dict[str, Any], cut: dict[str, Any]) -> dict[str, Any]:
    """The setting "domain"; nothing where the attack's own is wanted.

    Raises
    ------
    typer.BadParameter
        If windows or a cut are given where there are none.
    """
    if name not in (None, *DOMAINS):
        raise typer.BadParameter(f"{name!r} is not one of {', '.join(DOMAINS)}", param_hint="--domain")
    if name is None and not windows and not cut:
        return {}
    if name == "none" and (windows or cut):
        raise typer.BadParameter(f"none goes without --{next(iter(windows | cut))}", param_hint="--domain")
    if name == "gradient" and windows:
        raise typer.BadParameter(f"gradient has no windows: --{next(iter(windows))}", param_hint="--domain")
    if name == "none":
        return {"domain": None}
    return {"domain": Gradient(**cut) if name == "gradient" else Occlusion(**windows, **cut)}


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


def _described(summary: dict[str, Any]) -> str:
    """A summary in a line or two."""
    if not summary["attacked"]:
        return f"{summary['images']} images, none of which the model gets right"
    l2, ssim = summary["l2"], summary["ssim"]
    text = (
        f"{summary['images']} images: {summary['skipped']} skipped as misclassified, {summary['fooled']} of "
        f"{summary['attacked']} fooled ({summary['success_rate']:.1%}); ℓ2 {l2:.3f}"
    )
    text += "" if ssim is None or math.isnan(ssim) else f", SSIM {ssim:.4f}"
    return f"{text}; {summary['forward'] + summary['backward']:.0f} passes an image"
