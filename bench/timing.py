"""What the microbenchmarks share: interleaved timing, options, rows printed and written."""

from __future__ import annotations

import argparse
import random
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from sdsgsm_fast import _native_cpu
from sdsgsm_fast.common.files import write_json
from sdsgsm_fast.common.machine import machine

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Timing:
    """Seconds of one candidate: the median and the quartiles of its rounds."""

    median: float
    low: float
    high: float

    @property
    def spread(self) -> float:
        """Distance of the quartiles over the median."""
        return (self.high - self.low) / self.median


def interleaved(
    candidates: dict[str, Callable[[], object]], *, rounds: int, repeat: int = 1, seed: int = 0
) -> dict[str, Timing]:
    """Time `candidates` in interleaved rounds after a warm-up of each.

    A round calls each `repeat` times in a row and counts one call: with more than one, what fits
    into a cache is in it. On a GPU the last call is followed by a wait for the device.
    """
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for run in candidates.values():
        run()
        run()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    order = list(candidates)
    shuffle = random.Random(seed).shuffle
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            wait()
            run = candidates[name]
            start = time.perf_counter()
            for _ in range(repeat):
                run()
            wait()
            seconds[name].append((time.perf_counter() - start) / repeat)
    return {name: _summary(values) for name, values in seconds.items()}


def _summary(values: list[float]) -> Timing:
    low, median, high = statistics.quantiles(values, n=4)
    return Timing(median, low, high)


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """Options of every benchmark."""
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and candidates, for a first look")
    parser.add_argument("--json", type=Path, help="where every figure goes; default bench/results/NAME-MACHINE.json")
    parser.add_argument("--device", default=default, help=f"default {default}")
    parser.add_argument("--isa", action=Isa, help="instruction set of the CPU kernels, in place of the best")
    return parser


class Isa(argparse.Action):
    """Chooses the instruction set as the option is read."""

    def __call__(self, parser: argparse.ArgumentParser, options: Any, value: Any, name: str | None = None) -> None:
        """Take one that this machine runs."""
        if value not in _native_cpu.isas():
            parser.error(f"--isa: expected one of {', '.join(_native_cpu.isas())}, found {value}")
        _native_cpu.use_isa(value)
        options.isa = value


def begin(
    benchmark: str, args: argparse.Namespace, line: Callable[[dict[str, Any]], str], rivals: Sequence[str] = (),
    *, device: str | None = None, part: str = "",
) -> Rows:  # fmt: skip
    """Print what is measured on, and where the figures go.

    `device` is where it runs whatever `args` say; `part` names what is measured of it, so that a part
    does not take the place of the whole.
    """
    isa, on_gpu = _native_cpu.isa(), torch.device(device or args.device).type == "cuda"
    name = [benchmark, part, _machine_name(on_gpu, isa), "quick" if args.quick else ""]
    path = args.json or RESULTS / f"{'-'.join(word for word in name if word)}.json"
    rows = Rows(benchmark, path, line)
    found = {rival: _version(rival) for rival in rivals}
    rows.found["machine"]["isa"] = isa
    rows.found |= {"quick": args.quick, "rivals": found}
    about = rows.found["machine"]
    processor = about["gpu"] if on_gpu else f"{about['cpu']}, {about['threads']} threads"
    print(f"{benchmark} on {processor}; C++ kernels {isa}; torch {about['torch']}; figures go to {path}")
    for rival, version in found.items():
        print(f"{rival}: {version or 'missing (pyproject.toml tells how the rivals are installed)'}")
    return rows


def _machine_name(on_gpu: bool, isa: str) -> str:
    """The processor, and what limits it, as a part of a file's name."""
    about = machine()
    name = str(about["gpu"]) if on_gpu else f"{about['cpu']} {_cpu_model()} {isa}"
    return slug(re.sub(r"\((r|tm)\)", "", name.lower()))


def slug(text: str) -> str:
    """A text as a part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _cpu_model() -> str:
    """Family and model of an x86 CPU, whose name may say little, as in a virtual machine."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""
    found = [re.search(rf"^{key}\s*: (\d+)$", text, re.MULTILINE) for key in ("cpu family", "model")]
    return " ".join(match.group(1) for match in found if match)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


class Rows:
    """Rows as they come: printed, and written to a file each time, since a run may end early."""

    def __init__(self, benchmark: str, path: Path | None, line: Callable[[dict[str, Any]], str]) -> None:
        self.found: dict[str, Any] = {"benchmark": benchmark, "machine": machine(), "rows": []}
        self.path, self.line = path, line

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Print and keep rows."""
        self.found["rows"] += rows
        for row in rows:
            print(self.line(row), flush=True)
        if self.path is not None:
            write_json(self.path, self.found)
