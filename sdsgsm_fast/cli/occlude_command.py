"""The command `sdsgsm occlude`: a data set into a folder of occlusion maps."""

from __future__ import annotations

from typing import Annotated, Any

from .. import runs
from . import run_options as opt
from .options import Data, Device, Mean, Model, Size, Split, Std, Weights
from .running import fill_of, given, running, subject

Target = Annotated[str, opt.domain(help="label or predicted: the class whose score is measured.")]


def occlude(
    out: opt.Out, model: Model = "photos", weights: Weights = None, data: Data = "photos", split: Split = "test",
    size: Size = None, mean: Mean = None, std: Std = None, limit: opt.Limit = None, shard_size: opt.ShardSize = None,
    keep_scores: opt.KeepScores = False, quiet: opt.Quiet = False, target: Target = "label",
    patch: opt.Patch = None, stride: opt.Stride = None, score: opt.Score = None, fill: opt.Fill = None,
    method: opt.Method = None, batch_size: opt.BatchSize = None, device: Device = "cpu",
    precision: opt.Precision = "auto", backend: opt.Backend = "auto", max_memory: opt.MaxMemory = None,
) -> None:  # fmt: skip
    """Compute occlusion maps of a data set into a folder; the same command again goes on."""
    settings = given(patch=patch, stride=stride, score=score, fill=fill_of(fill), method=method)
    settings |= {"precision": precision, "backend": backend, "max_memory": max_memory, "batch_size": batch_size}
    loaded, found = subject(model, weights, mean, std, device, data, split, size)
    with running(f"occlusion maps of {loaded.name}", found, out, quiet) as (progress, told):
        told(_described(runs.occlude_dataset(
            loaded.model, found, out, mean=loaded.mean, std=loaded.std, target=target, limit=limit,
            shard_size=shard_size, keep=("scores",) if keep_scores else (), model_name=loaded.name,
            progress=progress, **settings,
        )))  # fmt: skip


def _described(summary: dict[str, Any]) -> str:
    """A summary in a line."""
    return (
        f"{summary['images']} maps: the model gets {summary['accuracy']:.1%} of the images right; "
        f"a map's largest value is {summary['peak']:.3f} in the mean"
    )
