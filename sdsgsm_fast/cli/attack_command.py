"""The command `sdsgsm attack`: a data set into a folder of adversarial images."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any

import typer

from .. import presets, runs
from ..attack import Attack
from ..domains import Gradient, Occlusion
from . import run_options as opt
from .options import Data, Device, Mean, Model, Size, Split, Std, Weights
from .running import fill_of, given, running, subject

PRESETS: dict[str, Callable[..., Attack]] = {
    name: kind for name, kind in vars(presets).items()
    if isinstance(kind, type) and issubclass(kind, Attack) and kind not in (Attack, presets.Preset)
}  # fmt: skip

Preset = Annotated[str, opt.step("--attack", help=f"{', '.join(PRESETS)}.")]
Png = Annotated[bool, opt.run("--png", help="Write PNG files, too; images then lie on 8-bit values: --levels 256.")]


def attack(
    out: opt.Out, model: Model = "photos", weights: Weights = None, data: Data = "photos", split: Split = "test",
    size: Size = None, mean: Mean = None, std: Std = None, limit: opt.Limit = None, shard_size: opt.ShardSize = None,
    keep_domain: opt.KeepDomain = False, keep_scores: opt.KeepScores = False, png: Png = False,
    quiet: opt.Quiet = False, preset: Preset = "SDSGSM", eps: opt.Eps = 8.0, alpha: opt.Alpha = None,
    steps: opt.Steps = None, gain: opt.Gain = None, decay: opt.Decay = None, normalize: opt.Normalize = None,
    loss: opt.Loss = None, random_start: opt.RandomStart = None, restarts: opt.Restarts = None,
    early_stop: opt.EarlyStop = None, growth: opt.Growth = None, refine: opt.Refine = None,
    levels: opt.Levels = None, seed: opt.Seed = 0, domain: opt.Domain = None, patch: opt.Patch = None,
    stride: opt.Stride = None, score: opt.Score = None, fill: opt.Fill = None, method: opt.Method = None,
    rule: opt.Rule = None, coverage: opt.Coverage = None, threshold: opt.Threshold = None,
    background: opt.Background = None, relax: opt.Relax = None, batch_size: opt.BatchSize = None,
    device: Device = "cpu", precision: opt.Precision = "auto", backend: opt.Backend = "auto",
    max_memory: opt.MaxMemory = None, cuda_graphs: opt.CudaGraphs = None,
) -> None:  # fmt: skip
    """Attack a data set into a folder; the same command again goes on where it was stopped."""
    if preset not in PRESETS:
        raise typer.BadParameter(f"{preset!r} is not one of {', '.join(PRESETS)}", param_hint="--attack")
    settings = given(
        steps=steps, gain=gain, decay=decay, normalize=normalize, loss=loss, random_start=random_start,
        restarts=restarts, early_stop=early_stop, growth=growth, refine=refine, background=background,
    )  # fmt: skip
    settings |= {"eps": eps / 255, "seed": seed, "precision": precision, "backend": backend}
    settings |= {"levels": 256 if png and levels is None else levels}
    settings |= {"batch_size": batch_size, "max_memory": max_memory, "cuda_graphs": cuda_graphs}
    settings |= {} if alpha is None else {"alpha": alpha / 255}
    settings |= {} if relax is None else {"relax": None if relax == "none" else _number("--relax", relax)}
    windows = given(patch=patch, stride=stride, score=score, fill=fill_of(fill), method=method)
    settings |= _domain(domain, windows, given(rule=rule, coverage=coverage, threshold=threshold))
    loaded, found = subject(model, weights, mean, std, device, data, split, size)
    made = PRESETS[preset](loaded.model, mean=loaded.mean, std=loaded.std, **settings)
    keep = tuple(name for name, wanted in (("domain", keep_domain), ("scores", keep_scores)) if wanted)
    with running(f"{preset} on {loaded.name}", found, out, quiet) as (progress, told):
        told(_described(runs.attack_dataset(
            made, found, out, limit=limit, shard_size=shard_size, keep=keep, png=png, model_name=loaded.name,
            progress=progress,
        )))  # fmt: skip


def _number(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"expected a number or none, found {text!r}", param_hint=option) from None


def _domain(name: str | None, windows: dict[str, Any], cut: dict[str, Any]) -> dict[str, Any]:
    """The setting "domain"; nothing where the attack's own is wanted.

    Raises
    ------
    typer.BadParameter
        If windows or a cut are given where there are none.
    """
    if name not in (None, *opt.DOMAINS):
        raise typer.BadParameter(f"{name!r} is not one of {', '.join(opt.DOMAINS)}", param_hint="--domain")
    if name is None and not windows and not cut:
        return {}
    if name == "none" and (windows or cut):
        raise typer.BadParameter(f"none goes without --{next(iter(windows | cut))}", param_hint="--domain")
    if name == "gradient" and windows:
        raise typer.BadParameter(f"gradient has no windows: --{next(iter(windows))}", param_hint="--domain")
    if name == "none":
        return {"domain": None}
    return {"domain": Gradient(**cut) if name == "gradient" else Occlusion(**windows, **cut)}


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
