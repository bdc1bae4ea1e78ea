"""Options of the commands that make sets: types for their signatures, one an option."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from ..kernels import backends
from .options import check_backend

DOMAINS = ("occlusion", "gradient", "none")


def _panel(name: str) -> Any:
    """Options that are shown together in the help."""
    return partial(typer.Option, rich_help_panel=name)


run, step, domain, compute = map(_panel, ("The run", "The attack", "Windows and domain", "How it is computed"))

Out = Annotated[Path, typer.Option(help="Folder of the set: new, empty, or that of the same run.")]
Limit = Annotated[int | None, run(min=1, help="So many images, evenly chosen.")]
ShardSize = Annotated[int | None, run(min=1, help="Images of a shard; none: 1024, of maps 128, or 256 MB of images.")]
KeepDomain = Annotated[bool, run("--keep-domain", help="Store the domains, too.")]
KeepScores = Annotated[bool, run("--keep-scores", help="Store occlusion's scores, too.")]
Quiet = Annotated[bool, run("--quiet", help="Say nothing but errors.")]
Eps = Annotated[float, step(min=0, max=255, help="ε, in units of 1/255.")]
Alpha = Annotated[
    float | None,
    step(min=0, max=255, help="α, in units of 1/255; none: the attack's own."),
]
Steps = Annotated[int | None, step(min=1, help="Largest number of updates.")]
Gain = Annotated[float | None, step(help="κ, the slope of the tanh; inf: the sign.")]
Decay = Annotated[float | None, step(help="μ, of the momentum.")]
Normalize = Annotated[str | None, step(help="mean_abs, max_abs, rms or none.")]
Loss = Annotated[str | None, step(help="ce, margin, dlr or jitter.")]
RandomStart = Annotated[bool | None, step("--random-start/--no-random-start", help="Start anywhere within ε.")]
Restarts = Annotated[int | None, step(min=1, help="Attempts, each from another start.")]
EarlyStop = Annotated[bool | None, step("--early-stop/--no-early-stop", help="Stop once fooled.")]
Growth = Annotated[float | None, step(help="γ, by which α grows with each update.")]
Refine = Annotated[int | None, step(min=0, help="Passes that look for a smaller ℓ2.")]
Levels = Annotated[int | None, step(min=2, help="256: results lie on 8-bit values and are judged there.")]
Seed = Annotated[int, step(min=0, help="Of whatever is drawn.")]
Domain = Annotated[str | None, domain(help=f"{', '.join(DOMAINS)}; the attack's own if not given.")]
Patch = Annotated[int | None, domain(min=1, help="Side of a window.")]
Stride = Annotated[int | None, domain(min=1, help="Between windows.")]
Score = Annotated[str | None, domain(help="prob, log_prob, logit or margin.")]
Fill = Annotated[str | None, domain(help="A value, one a channel, mean or blur.")]
Method = Annotated[str | None, domain(help="auto, dense or incremental: how windows are scored.")]
Rule = Annotated[str | None, domain(help="top, threshold, flip or soft.")]
Coverage = Annotated[float | None, domain(min=0, max=1, help="Share of the pixels, rule top.")]
Threshold = Annotated[float | None, domain(help="Share of the largest score, rule threshold.")]
Background = Annotated[float | None, domain(min=0, max=1, help="β, what pixels outside get of ε and α.")]
Relax = Annotated[str | None, domain(help="Share of the steps after which β is 1; none: never.")]
BatchSize = Annotated[int | None, compute(min=1, help="Images at once.")]
Precision = Annotated[str, compute(help="auto, float32 or bfloat16.")]
Backend = Annotated[str, compute(help=f"{', '.join(backends.NAMES)}.", callback=check_backend)]
MaxMemory = Annotated[int | None, compute(min=1, help="Bytes of scratch space of occlusion.")]
CudaGraphs = Annotated[bool | None, compute("--cuda-graphs/--no-cuda-graphs", help="Record passes on a GPU.")]
