"""What a shard holds: a slice of the data set's adversarial images, and what is known of each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import metrics
from ..common.optional import require
from ..result import AttackResult

NUMBERS = ("l2", "linf", "ssim")
COUNTS = ("labels", "reached", "updates", "forward", "backward", "index")
FLAGS = ("success", "skipped")


@dataclass(frozen=True)
class Shard:
    """Images first … stop − 1 of a data set.

    Attributes
    ----------
    number
        From 0 on.
    first, stop
        Places in the data set.
    """

    number: int
    first: int
    stop: int

    @property
    def name(self) -> str:
        """Its file."""
        return f"adv-{self.number:05d}.safetensors"

    @property
    def note(self) -> str:
        """A file with its checksum, until the set is complete."""
        return f"adv-{self.number:05d}.sha256"


def shards_of(total: int, size: int) -> list[Shard]:
    """Slices of `size` images; the last may be shorter."""
    starts = range(0, total, size)
    return [Shard(number, at, min(at + size, total)) for number, at in enumerate(starts)]


def tensors_of(result: AttackResult, labels: Tensor, reached: Tensor, levels: int | None, keep: tuple[str, ...]
) -> dict[str, Tensor]:  # fmt: skip
    """The tensors of a shard, on the host.

    Parameters
    ----------
    result, labels, reached
        Of the shard's images: the attack's result, their classes, and those that the model gives
        the adversarial images.
    levels
        The attack's; with 256 images are stored as bytes.
    keep
        "domain", "scores": what else to store where there is such.
    """
    adv, images, bounds = result.adv, result.images, result.bounds
    large = min(adv.shape[2:]) >= metrics.SSIM_WINDOW
    parts = zip(torch.split(adv, 256), torch.split(images, 256), strict=True)
    ssim = torch.cat([metrics.ssim(a, x, bounds) for a, x in parts]) if large else torch.full((len(adv),), torch.nan)
    found = {
        "images": _bytes(adv, bounds) if levels == 256 else adv.float(),
        "labels": labels, "reached": reached, "success": result.success, "skipped": result.skipped,
        "updates": result.updates, "forward": result.passes.forward, "backward": result.passes.backward,
        "index": result.index, "l2": metrics.l2(adv, images).float(), "linf": metrics.linf(adv, images).float(),
        "ssim": ssim.float(),
    }  # fmt: skip
    if "domain" in keep:
        found["domain"] = result.domain.float()
    if "scores" in keep and result.scores is not None:
        found["scores"] = result.scores.float()
    return {name: value.detach().cpu().contiguous() for name, value in found.items()}


def _bytes(adv: Tensor, bounds: tuple[float, float]) -> Tensor:
    lo, hi = bounds
    return ((adv - lo) / (hi - lo) * 255).round().to(torch.uint8)


def pixels(stored: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Images as the model was judged on them, float32, of what a shard stores."""
    if stored.dtype != torch.uint8:
        return stored
    lo, hi = bounds
    return stored.float() / 255 * (hi - lo) + lo


def serialized(tensors: dict[str, Tensor], about: dict[str, Any]) -> bytes:
    """A shard's file, the same bytes for the same content."""
    content: bytes = _package("safetensors.torch").save(tensors, metadata={"about": json.dumps(about, sort_keys=True)})
    return content


def read(path: Path, names: tuple[str, ...] | None = None) -> dict[str, Tensor]:
    """Tensors of a shard, all or some.

    Raises
    ------
    ValueError
        If the file is damaged, or lacks one of them.
    """
    with _opened(path) as file:
        wanted = tuple(file.keys()) if names is None else names
        return {name: file.get_tensor(name) for name in wanted}


def bounds_of(path: Path) -> tuple[float, float]:
    """(lo, hi) of the pixels of a shard; errors as of `read`."""
    with _opened(path) as file:
        lo, hi = json.loads((file.metadata() or {})["about"])["bounds"]
        return float(lo), float(hi)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A shard's file; whatever is wrong with it is a ValueError that names it."""
    package = _package("safetensors")
    try:
        with package.safe_open(path, framework="pt") as file:
            yield file
    except (package.SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: no readable shard: {error}") from error


def _package(name: str) -> Any:
    return require(name, extra="cli", purpose="data-set runs")
