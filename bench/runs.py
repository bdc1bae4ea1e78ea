"""What a data-set run costs beside the attack itself, what a second process gains, and PGD for comparison.

    python -m bench runs [--data DIR] [--limit N] [--quick] [--json FILE]

- run: SD-SGSM's defaults by `runs.attack_dataset`; the overhead is what it takes besides reading images
  and attacking them, timed inside one run, since two runs differ by more.
- one process, two ranks: the same set by one process and by two of torchrun, one thread each, from
  start to end of the commands.
- sdsgsm attack: the whole data set by one command, from start to end. Images that the network gets wrong
  are not attacked: both rates are given.
- torchattacks PGD: 20 steps on the same images, those that the network gets right, where it is installed.
- memory: growth of the resident set over the last three quarters of a long run.

DIR holds test-first500-jpeg.tar and resnet20.safetensors (see bench/cifar10.sh); without it the
embedded photographs and classifier are taken.
"""

from __future__ import annotations

import importlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from timing import begin, parser_of
from torch import Tensor, nn

from sdsgsm_fast import BIM, SDSGSM, images, models, runs
from sdsgsm_fast.data.images import ArraySet
from sdsgsm_fast.model.classifier import Classifier

HERE = Path(__file__).parent
PGD_STEPS = 20
PART = 2048  # images of the run whose overhead is measured


class Subject:
    """A model and images, and how the command line names them."""

    def __init__(self, folder: Path | None, limit: int) -> None:
        self.options = ["--limit", str(limit)]
        if folder is None:
            self.loaded, self.data = models.load("photos"), images.load("photos")
        else:
            net, weights, data = (
                f"{HERE / 'nets.py'}:resnet20",
                folder / "resnet20.safetensors",
                folder / "test-first500-jpeg.tar",
            )
            self.loaded, self.data = models.load(net, weights=weights), images.load(data)
            self.options += ["--model", net, "--weights", str(weights), "--data", str(data)]
        self.limit = min(limit, len(self.data))
        self.name = f"{'photos' if folder is None else 'resnet20'}, {self.limit} images"

    def attack(self, **settings: Any) -> SDSGSM:
        """SD-SGSM's defaults."""
        return SDSGSM(self.loaded.model, mean=self.loaded.mean, std=self.loaded.std, **settings)

    def places(self) -> list[int]:
        """The images that a run takes."""
        return [i * len(self.data) // self.limit for i in range(self.limit)]


def seconds(work: Callable[[], object]) -> float:
    """Time one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def overhead(subject: Subject) -> list[dict[str, Any]]:
    """What a run does besides reading images and attacking them, timed inside one run."""
    attack = subject.attack()
    attack.without_skipped().run(*subject.data.rows(subject.places()[:64]))
    inside = 0.0

    def timed(method: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **settings: Any) -> Any:
            nonlocal inside
            start = time.perf_counter()
            found = method(*args, **settings)
            inside += time.perf_counter() - start
            return found

        return run

    kind = type(subject.data)
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(SDSGSM, "run", timed(SDSGSM.run)),
        mock.patch.object(kind, "rows", timed(kind.rows)),
    ):
        taken = seconds(lambda: runs.attack_dataset(attack, subject.data, folder, limit=subject.limit))
    return [{"section": subject.name, "name": "run", "seconds": taken, "images_per_second": subject.limit / taken,
             "overhead": taken / inside - 1}]  # fmt: skip


def once(subject: Subject) -> list[dict[str, Any]]:
    """The whole data set in one command."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "sdsgsm_fast", "attack", "--quiet", *subject.options, "--out", folder]
        taken = seconds(lambda: subprocess.run(command, check=True))
        found = runs.load(folder).columns
        attacked = int((~found["skipped"]).sum())
    return [{"section": subject.name, "name": "sdsgsm attack", "seconds": taken,
             "images_per_second": subject.limit / taken, "attacked_per_second": attacked / taken,
             "success_rate": int(found["success"].sum()) / attacked}]  # fmt: skip


class Inside(nn.Module):
    """A model with its normalisation inside, as torchattacks takes it."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.model, self.inputs = classifier.model, classifier.inputs

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images in [0, 1]."""
        logits: Tensor = self.model(self.inputs(x))
        return logits


def rival(subject: Subject) -> list[dict[str, Any]]:
    """PGD of torchattacks on the images that the network gets right."""
    try:
        library = importlib.import_module("torchattacks")
    except ImportError as error:
        return [{"section": subject.name, "name": "torchattacks PGD", "seconds": None, "missing": str(error)}]
    classifier = Classifier(subject.loaded.model, mean=subject.loaded.mean, std=subject.loaded.std)
    pgd = library.PGD(Inside(classifier), eps=8 / 255, alpha=1 / 255, steps=PGD_STEPS)
    pixels, labels = subject.data.rows(subject.places())
    right = classifier.predicted(pixels) == labels
    pixels, labels = pixels[right], labels[right]
    found = []

    def work() -> None:
        for x, y in zip(pixels.split(256), labels.split(256), strict=True):
            found.append(pgd(x, y))

    taken = seconds(work)
    return [{"section": subject.name, "name": f"torchattacks PGD-{PGD_STEPS}", "seconds": taken,
             "images_per_second": len(pixels) / taken, "attacked_per_second": len(pixels) / taken,
             "success_rate": float((classifier.predicted(torch.cat(found)) != labels).float().mean())}]  # fmt: skip


def ranks(subject: Subject) -> list[dict[str, Any]]:
    """One process against two, by the command line."""
    rows = []
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name, start in (("one process", [sys.executable]), ("two ranks", launcher)):
        with tempfile.TemporaryDirectory() as folder:
            command = [*start, "-m", "sdsgsm_fast", "attack", "--quiet", "--shard-size", "128", *subject.options]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            taken = seconds(
                lambda c=command, f=folder, e=environment: subprocess.run([*c, "--out", f], check=True, env=e)
            )
        rows.append({"section": subject.name, "name": name, "seconds": taken,
                     "images_per_second": subject.limit / taken, "times_one": 1.0})  # fmt: skip
    rows[1]["times_one"] = rows[0]["seconds"] / rows[1]["seconds"]
    return rows


def memory(count: int) -> list[dict[str, Any]]:
    """Resident set over a long run of a fast attack."""
    loaded, source = models.load("photos"), images.load("photos")
    pixels, labels = source.rows([i % len(source) for i in range(2048)])
    stored = ArraySet("photos, again", (pixels * 255).round().to(torch.uint8).numpy(), labels.numpy())
    attack = BIM(loaded.model, mean=loaded.mean, std=loaded.std, steps=2)
    peaks: list[int] = []
    for _ in range(max(4, count // len(stored))):
        with tempfile.TemporaryDirectory() as folder:
            runs.attack_dataset(attack, stored, folder)
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    growth = (peaks[-1] - peaks[len(peaks) // 4]) / 1024
    return [{"section": "memory", "name": f"{len(peaks) * len(stored)} images", "seconds": None, "growth_mb": growth}]


def line(row: dict[str, Any]) -> str:
    """One row as text."""
    head = f"{row['section']:>22} {row['name']:>20}"
    if "growth_mb" in row:
        return f"{head} {row['growth_mb']:.1f} MB more in the last three quarters"
    if row["seconds"] is None:
        return f"{head} missing: {row['missing']}"
    extra = f" {row['overhead']:+.1%} beside what reading and attacking take" if "overhead" in row else ""
    if "success_rate" in row:
        extra += f", {row['attacked_per_second']:.1f} attacked/s, {row['success_rate']:.1%} of them fooled"
    extra += f" {row['times_one']:.2f}× one process" if "times_one" in row else ""
    return f"{head} {row['seconds']:8.1f} s {row['images_per_second']:8.1f} images/s{extra}"


def main() -> None:
    """Measure, print and write."""
    parser = parser_of(__doc__)
    parser.add_argument("--data", type=Path, help="folder of CIFAR-10 and the network")
    parser.add_argument("--limit", type=int, default=5000)
    args = parser.parse_args()
    few = "" if args.limit == parser.get_default("limit") else f"{args.limit}-images"
    rows = begin("runs", args, line, ("torchattacks",), device="cpu", part=few)
    limit = 256 if args.quick else args.limit
    part = Subject(args.data, min(limit, PART))
    rows.add(overhead(part))
    whole = Subject(args.data, limit)
    rows.add(ranks(whole))
    rows.add(once(whole))
    rows.add(rival(whole))
    rows.add(memory(4000 if args.quick else 20000))


if __name__ == "__main__":
    main()
