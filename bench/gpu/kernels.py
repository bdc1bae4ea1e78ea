"""Each kernel on this GPU: checked, then timed cold and hot against a copy of the same bytes.

    python bench/gpu/kernels.py [--seconds N] [--small] --json FILE

A row is one kernel, shape, dtype and backend: microseconds of a call on the device with its tensors
out of the L2 cache ("cold") and, where they fit, in it ("hot"), microseconds that the host needs to
issue it, the bytes that it must move, and the share of the bandwidth of a device copy that moves as
many bytes, timed the same way in the same run. "eager" and "compile" are PyTorch's own. The
deviation is the largest from the reference in float64 of what was timed. The file is rewritten after
every row. `--small` takes tiny shapes, to try the program without a GPU.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from device import Call, environment, host_time, l2_bytes, sets_for, timed
from torch import Tensor

from sdsgsm_fast import ops
from sdsgsm_fast.kernels import backends, native, triton

sys.path.append(str(Path(__file__).parents[1]))
from timing import Rows
from update import SETTINGS, eager, formula, tensors

MOST_FOR_HOST = 2**28  # bytes of a call beyond which the host's part does not show
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
UPDATE = ((64, 3, 32, 32), (1024, 3, 32, 32), (32768, 3, 32, 32), (1024, 3, 224, 224), (64, 3, 299, 299))
COMPILED = UPDATE[1:3]  # a shape takes a compiler seconds
OCCLUDE = (((1, 3, 32, 32), 4, 64), ((256, 3, 32, 32), 4, 64), ((4, 3, 224, 224), 32, 49), ((2, 3, 224, 224), 16, 196))
PASTE = ((64, 64, 32, 12, 4096), (32, 256, 14, 6, 4096), (8, 64, 56, 20, 1024))
SMALL_UPDATE = ((3, 3, 8, 8), (2, 3, 33, 31))
SMALL_OCCLUDE = (((2, 3, 8, 8), 4, 4),)
SMALL_PASTE = ((2, 8, 8, 4, 6),)

Candidates = dict[str, list[Call]]
"""Calls by backend, one for each set of tensors."""
Check = Callable[[str], float]
"""The largest deviation of a backend from the reference."""


class Bench:
    """Rows so far, and until when more are wanted."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.device, self.small = args.device, args.small
        self.rows = Rows("gpu kernels", args.json, line)
        self.rows.found |= {"environment": environment(), "backends": backends.report(), "left_out": [], "errors": []}
        self.until = time.monotonic() + args.seconds

    def measure(self, about: dict[str, Any], moved: int, candidates: Candidates, check: Check) -> None:
        """Rows of one kernel, shape and dtype; what fails, or there is no time for, is noted."""
        copied = timed(self.copy_of(moved))
        for name, calls in candidates.items():
            if time.monotonic() > self.until:
                self.rows.found["left_out"].append({**about, "backend": name})
                continue
            try:
                deviation, cold = check(name), timed(calls)
                row = {
                    **about, "backend": name, "bytes": moved, "cold_us": cold.median, "spread": cold.spread,
                    "hot_us": timed(calls[:1]).median if moved < l2_bytes() // 2 else None,
                    "host_us": host_time(calls[0]) if moved < MOST_FOR_HOST else None,
                    "copy_us": copied.median, "GB/s": moved / cold.median / 1e3,
                    "share_of_copy": copied.median / cold.median, "deviation": deviation,
                }  # fmt: skip
            except Exception as error:  # the other backends are measured all the same
                self.rows.found["errors"].append({**about, "backend": name, "error": repr(error)[:500]})
                print(f"{about} {name}: {error!r}"[:300], flush=True)
                continue
            self.rows.add([row])

    def copy_of(self, moved: int) -> list[Call]:
        """Device copies that read and write so many bytes together."""
        values = max(1, moved // 8)
        sets = sets_for(moved)
        pairs = [[torch.rand(values, device=self.device) for _ in range(2)] for _ in range(sets)]
        return [lambda pair=pair: pair[0].copy_(pair[1]) for pair in pairs]

    def kernels(self, tensor: Tensor) -> Iterator[str]:
        """Backends of our own that take a tensor."""
        for name, backend in (("native", native), ("triton", triton)):
            if backend.supports(tensor) and not (name == "triton" and triton.interpreted()):
                yield name


def updates(bench: Bench) -> None:
    """The update, in place, with a domain: images of 32, 224 and 299 pixels."""
    for shape in SMALL_UPDATE if bench.small else UPDATE:
        for grad in (torch.float32, torch.bfloat16):
            values = math.prod(shape)
            moved = values * (3 * 4 + grad.itemsize) + 4 * shape[0] * shape[2] * shape[3]
            sets = [tensors(shape, grad, bench.device) for _ in range(sets_for(moved))]
            torch._dynamo.reset()
            makers: dict[str, Callable[[dict[str, Tensor]], Call]] = {"eager": lambda t: lambda: eager(t)}
            if shape in COMPILED:
                fast = torch.compile(formula, dynamic=False)
                makers["compile"] = lambda t, fast=fast: lambda: fast(**t)
            for name in bench.kernels(sets[0]["adv"]):
                makers[name] = lambda t, name=name: lambda: ops.update_(**t, **SETTINGS, backend=name)
            about = {"kernel": "update", "shape": list(shape), "dtype": _name(grad)}
            calls = {k: [make(t) for t in sets] for k, make in makers.items()}
            bench.measure(about, moved, calls, lambda name, m=makers, s=sets: _deviation(m[name], s[0]))


def _deviation(make: Callable[[dict[str, Tensor]], Call], t: dict[str, Tensor]) -> float:
    """Largest difference of one step from the reference in float64; of a part of large batches."""
    wide = {k: v[:64].double() for k, v in t.items()}
    expected, start = eager(wide), t["adv"].clone()
    make(t)()
    worst = float((t["adv"][:64] - expected).abs().max())
    t["adv"].copy_(start)
    return worst


def occludes(bench: Bench) -> None:
    """Zeroed-out, normalised copies in the dtype and layout that a model gets."""
    for shape, patch, count in SMALL_OCCLUDE if bench.small else OCCLUDE:
        for dtype in (torch.float32, torch.bfloat16):
            for last in (False, True):
                copies = count * math.prod(shape)
                moved = copies * dtype.itemsize + 4 * math.prod(shape)
                images = [torch.rand(shape, device=bench.device) for _ in range(2)]
                settings = {"patch": patch, "mean": MEAN, "std": STD, "dtype": dtype, "channels_last": last}

                def make(x: Tensor, name: str, settings: dict[str, Any] = settings, count: int = count) -> Call:
                    return lambda: ops.occlude(x, 0, count, **settings, backend=name)

                expected = make(images[0].double(), "reference")()

                def check(name: str, make: Any = make, x: Tensor = images[0], expected: Any = expected) -> float:
                    return _largest(make(x, name)(), expected)

                names = list(bench.kernels(images[0]))
                about = {"kernel": "occlude", "shape": [*shape, count], "dtype": _name(dtype),
                         "layout": "last" if last else "first"}  # fmt: skip
                bench.measure(about, moved, {n: [make(x, n) for x in images] for n in names}, check)


def pastes(bench: Bench) -> None:
    """Tiles of maps with crops pasted in, as an incremental map takes them."""
    for images, channels, size, tile, count in SMALL_PASTE if bench.small else PASTE:
        for dtype in (torch.float32, torch.bfloat16):
            crop = tile - 2
            clean = torch.randn(images, channels, size, size, device=bench.device).to(dtype)
            crops = torch.randn(count, channels, crop, crop, device=bench.device).to(dtype)
            index = torch.arange(count, dtype=torch.int32, device=bench.device)
            starts = torch.arange(-1, size - tile + 1, dtype=torch.int32, device=bench.device)
            along = torch.stack([starts, starts + 1, starts + 1 + crop], 1)
            where = (index % images, index % len(starts), index // 7 % len(starts))

            def make(name: str, given: tuple[Any, ...] = (clean, crops, *where, along, along), t: int = tile) -> Call:
                return lambda: ops.paste(*given, height=t, width=t, backend=name)

            moved = dtype.itemsize * (2 * count * channels * tile * tile)
            expected = make("reference")()

            def check(name: str, make: Any = make, expected: Any = expected) -> float:
                return _largest(make(name)(), expected)

            names = list(bench.kernels(clean))
            about = {"kernel": "paste", "shape": [images, channels, size, tile, count], "dtype": _name(dtype)}
            bench.measure(about, moved, {n: [make(n)] * 2 for n in names}, check)


def means(bench: Bench) -> None:
    """Maps of windows' scores."""
    count, size, patch = (4, 8, 4) if bench.small else (512, 224, 16)
    scores = torch.randn(count, (size // patch) ** 2, device=bench.device)

    def make(name: str) -> Call:
        return lambda: ops.window_mean(scores, size, size, patch=patch, backend=name)

    expected: Any = make("reference")()
    names = list(bench.kernels(scores))
    about = {"kernel": "window_mean", "shape": [count, size, patch], "dtype": "float32"}
    moved = 4 * (scores.numel() + count * size * size)
    calls = {n: [make(n)] * 2 for n in names}
    bench.measure(about, moved, calls, lambda name: _largest(make(name)(), expected))


def _largest(found: Any, expected: Tensor) -> float:
    return float((found.double() - expected.double()).abs().max())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def line(row: dict[str, Any]) -> str:
    """One row as text."""
    shape = "×".join(map(str, row["shape"]))
    hot = "" if row["hot_us"] is None else f", {row['hot_us']:.1f} hot"
    host = "" if row["host_us"] is None else f", host {row['host_us']:.1f} µs"
    deviation = "" if row["deviation"] is None else f"  off by {row['deviation']:.0e}"
    return (
        f"{row['kernel']:>11} {shape:>18} {row['dtype']:>8} {row.get('layout', ''):>5} {row['backend']:>8} "
        f"{row['cold_us']:9.1f} µs ±{row['spread']:3.0%}{hot} {row['GB/s']:7.0f} GB/s "
        f"{row['share_of_copy']:5.0%} of copy{host}{deviation}"
    )


def main() -> None:
    """Measure until the time is up, and note what was left out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--small", action="store_true", help="tiny shapes, to try the program")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    bench = Bench(parser.parse_args())
    torch.manual_seed(0)
    for measure in (updates, occludes, pastes, means):
        measure(bench)
    bench.rows.found["clocks_after"] = environment()["nvidia-smi"]
    bench.rows.add([])


if __name__ == "__main__":
    main()
