"""What kinds of set there are, and what each knows of an image."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """A kind of set.

    Attributes
    ----------
    name, prefix
        As the manifest calls it, and how its shards' names begin.
    stored
        The tensor of images that it is made for, (N, …).
    columns
        Tensors (N,) of each shard.
    most
        Images of a shard, unless asked otherwise: what is lost by a kill, and how often progress is told.
    """

    name: str
    prefix: str
    stored: str
    columns: tuple[str, ...]
    most: int = 1024


ATTACK = Kind(
    "attack", "adv", "images",
    ("labels", "reached", "updates", "forward", "backward", "index", "success", "skipped", "l2", "linf", "ssim"),
)  # fmt: skip
OCCLUSION = Kind(
    "occlusion", "map", "maps",
    ("labels", "predicted", "explained", "index", "confidence", "peak", "least"), most=128,
)  # fmt: skip

KINDS = {kind.name: kind for kind in (ATTACK, OCCLUSION)}
