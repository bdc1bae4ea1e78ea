"""Whole attacks and maps on this GPU, beside the field's: most important first, until the time is up.

    python bench/gpu/programs.py [--seconds N] [--prepared DIR] [--small] --json FILE

A row is one program, model and batch: images a second (median of up to three rounds after a warm-up
at full size), success judged by the model in float32 or a map's deviation
from the loop's, and peak memory. Rows of this library add what its log says of the trace, the plan
and the graphs, passes an image, waits for the device a step, the share of the time in which the GPU
was busy, and the time of one image (the fixed cost). The file is rewritten after every row.

DIR holds `resnet18.safetensors`, trained weights, and `crops.safetensors`, images as bytes and their
labels; see `bench/gpu/prepare.py`. `--small` takes few images and tiny networks, to try the program.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from device import environment, wait
from safetensors.torch import load_file
from torch import Tensor, nn

from sdsgsm_fast import BIM, MIFGSM, PGD, SDSGSM, MinimalSDSGSM, SmoothingOnly, occlusion_map
from sdsgsm_fast.data.photonet import load_photonet
from sdsgsm_fast.engine import cudnn, graphs, window_runner
from sdsgsm_fast.model.precision import uses_tf32, without_tf32

sys.path.append(str(Path(__file__).parents[1]))
import nets
from attack import EPS, SETTINGS, STEPS, Normalised, adv_lib_pgd, foolbox_pgd, pgd_by_hand, small_net, torchattack
from occlusion import Case, captum, loop
from timing import Rows

ROUNDS = 3
MOST_SECONDS = 8.0  # of a program's rounds: a slow one has fewer
Program = Callable[[], Tensor]


@dataclass
class Subject:
    """A model, and images that it gets right."""

    name: str
    model: nn.Module
    images: Tensor
    labels: Tensor

    def batch(self, count: int) -> Subject:
        """So many images, the same again where there are fewer."""
        rows = torch.arange(count, device=self.images.device) % len(self.images)
        return Subject(self.name, self.model, self.images[rows].contiguous(), self.labels[rows].contiguous())


class Bench:
    """Rows so far, and until when more are wanted."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.device, self.small, self.prepared = args.device, args.small, args.prepared
        self.rows = Rows("gpu programs", args.json, line)
        self.rows.found |= {"environment": environment(), "tf32": uses_tf32(torch.device(args.device)),
                            "missing": {}, "left_out": [], "errors": []}  # fmt: skip
        self.until = time.monotonic() + args.seconds

    @property
    def late(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() > self.until

    def compare(
        self, section: str, subject: Subject, programs: dict[str, Program], judge: Callable[[Tensor], dict[str, Any]],
        watched: dict[str, Any],
    ) -> None:  # fmt: skip
        """Time programs one by one, rivals first, a row each; `watched` are those whose insides are looked at."""
        about = {"section": section, "model": subject.name, "batch": len(subject.images)}
        best = 0.0  # images a second of a rival
        for name, program in programs.items():
            if self.late:
                self.rows.found["left_out"].append({**about, "name": name})
                continue
            try:
                row = {**about, "name": name, **timed(program, judge, lambda: self.late)}
                row["images_per_second"] = len(subject.images) / row["seconds"]
                best = max(best, row["images_per_second"] if rival(name) else 0.0)
                row["times_best_rival"] = row["images_per_second"] / best if best else None
                if name in watched and not self.late:
                    row |= insides(watched[name], subject)
            except Exception as error:  # the others are measured all the same
                self.rows.found["errors"].append({**about, "name": name, "error": repr(error)[:500]})
                print(f"{about} {name}: {error!r}"[:300], flush=True)
                continue
            self.rows.add([row])


# Measurements


def timed(program: Program, judge: Callable[[Tensor], dict[str, Any]], late: Callable[[], bool]) -> dict[str, Any]:
    """Warm up at full size, judge what came out, then time up to `ROUNDS` more."""
    with logged() as said:
        first, found = seconds(program)
    row: dict[str, Any] = {"first": first, "log": said, **judge(found)}
    reset_peak()
    times = [seconds(program)[0]]
    while len(times) < ROUNDS and sum(times) < MOST_SECONDS and not late():
        times.append(seconds(program)[0])
    middle = statistics.median(times)
    return row | {
        "seconds": middle, "rounds": len(times), "spread": (max(times) - min(times)) / middle, "peak_bytes": peak(),
    }  # fmt: skip


def seconds(program: Program) -> tuple[float, Tensor]:
    """Time one call."""
    wait()
    start = time.perf_counter()
    found = program()
    wait()
    return time.perf_counter() - start, found


def reset_peak() -> None:
    """Count memory from here on."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak() -> int | None:
    """Most bytes that were allocated; None without a GPU."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


@contextmanager
def logged() -> Iterator[list[str]]:
    """What the library says of how it runs, each line once."""
    said: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage() not in said:
                said.append(record.getMessage())

    log, handler = logging.getLogger("sdsgsm_fast"), Handler()
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            yield said
        said += [str(w.message) for w in warned if "cuda_graphs" in str(w.message)]
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def insides(attack: Any, subject: Subject) -> dict[str, Any]:
    """Passes an image, waits a step, busy share of the GPU and the fixed cost of an attack."""
    found: dict[str, Any] = {}
    result = attack.run(subject.images, subject.labels)
    found["forward"] = float(result.passes.forward.double().mean())
    found["backward"] = float(result.passes.backward.double().mean())
    found["updates"] = float(result.updates.double().mean())
    one = subject.batch(1)
    attack.run(one.images, one.labels)
    found["one_image_s"] = statistics.median(seconds(lambda: attack(one.images, one.labels))[0] for _ in range(3))
    if subject.images.is_cuda:
        steps = max(1, int(result.updates.max()))
        found["waits_a_step"] = waits(lambda: attack(subject.images, subject.labels)) / steps
        found["busy"] = busy_share(lambda: attack(subject.images, subject.labels))
    return found


def waits(program: Program) -> int:
    """How often the host waits for the device."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            program()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(w.message) for w in said)


def busy_share(program: Program) -> float:
    """Share of the time in which a kernel or a copy ran."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        taken, _ = seconds(program)
    spans = sorted(
        (e.time_range.start, e.time_range.end) for e in seen.events() if e.device_type == torch.autograd.DeviceType.CUDA
    )
    busy, until = 0.0, float("-inf")
    for start, end in spans:  # of several streams, which may overlap
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return busy / 1e6 / taken


def rival(name: str) -> bool:
    """Whether a program is another library's."""
    return not name.startswith("ours")


# Subjects


def crops(bench: Bench) -> tuple[Tensor, Tensor]:
    """Photographs' crops as they were prepared, or of this package's source."""
    if bench.prepared:
        found = load_file(bench.prepared / "crops.safetensors")
        return found["images"].float().div(255).to(bench.device), found["labels"].to(bench.device)
    from sdsgsm_fast.data.photos import photo_crops

    images, labels = photo_crops("test", 4 if bench.small else 128)
    return images.to(bench.device), labels.to(bench.device)


def photonet(bench: Bench) -> Subject:
    """The embedded classifier."""
    return _right("photonet", Normalised(load_photonet()).eval().to(bench.device), *crops(bench))


def resnet18(bench: Bench) -> Subject:
    """A trained ResNet-18 for 32×32 images; with random weights where none are prepared."""
    net, name = small_net() if bench.small else nets.resnet18_cifar(classes=10), "resnet18, random weights"
    if bench.prepared and not bench.small:
        net.load_state_dict({k: v.float() if v.is_floating_point() else v
                             for k, v in load_file(bench.prepared / "resnet18.safetensors").items()})  # fmt: skip
        name = "resnet18"
    images, labels = crops(bench)
    model = Normalised(net).eval().to(bench.device)
    if name != "resnet18":
        labels = predicted(model, images)
    return _right(name, model, images, labels)


def resnet50(bench: Bench) -> Subject:
    """A ResNet-50 for 224×224 images with random weights."""
    model = (small_net() if bench.small else nets.resnet50()).eval().to(bench.device)
    size, count = (32, 4) if bench.small else (224, 256)
    images = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0)).to(bench.device)
    return Subject("resnet50, random weights", model, images, predicted(model, images))


@torch.no_grad()
def predicted(model: nn.Module, images: Tensor) -> Tensor:
    """Classes by the model in float32."""
    with without_tf32(images.device):
        return torch.cat([model(part).argmax(1) for part in images.split(256)])


def _right(name: str, model: nn.Module, images: Tensor, labels: Tensor) -> Subject:
    right = predicted(model, images) == labels
    return Subject(name, model, images[right], labels[right])


# Programs


class Reduced(nn.Module):
    """A model under bfloat16 autocast and channels_last: the fair rival of what searches so."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Logits in float32."""
        with torch.autocast(x.device.type, torch.bfloat16):
            logits: Tensor = self.model(x.contiguous(memory_format=torch.channels_last))
        return logits.float()


def rivals(bench: Bench, subject: Subject) -> dict[str, Program]:
    """The field's PGD, 20 steps, in float32 and in bfloat16."""
    makers: dict[str, Callable[[], Any]] = {
        "torchattacks PGD": lambda: torchattack("PGD"), "foolbox PGD": foolbox_pgd, "adv-lib PGD": adv_lib_pgd,
    }  # fmt: skip
    found: dict[str, Any] = {}
    for name, make in makers.items():
        try:
            found[name] = make()
        except Exception as error:  # a package that is not there, or does not run here
            bench.rows.found["missing"][name] = repr(error)[:300]
    found = found or {"PGD by hand": pgd_by_hand}
    reduced, x, y = Reduced(subject.model), subject.images, subject.labels
    programs = {name: lambda run=run: run(subject.model, x, y) for name, run in found.items()}
    first = next(iter(found))
    return programs | {f"{first} bfloat16": lambda: found[first](reduced, x, y)}


def own(subject: Subject) -> tuple[dict[str, Program], dict[str, Any]]:
    """The attacks of this library as programs, and as they are."""
    graphed = {"cuda_graphs": True} if subject.images.is_cuda else {}
    eager = {"cuda_graphs": False}
    attacks: dict[str, Any] = {
        "ours PGD": PGD(subject.model, **SETTINGS),
        "ours BIM, 20 steps": BIM(subject.model, early_stop=False, **SETTINGS),
        "ours BIM, 20 steps float32": BIM(subject.model, early_stop=False, precision="float32", **SETTINGS),
        "ours SD-SGSM": SDSGSM(subject.model, **SETTINGS),
        "ours SD-SGSM float32": SDSGSM(subject.model, precision="float32", **SETTINGS),
        "ours MI-FGSM": MIFGSM(subject.model, early_stop=False, **SETTINGS),
        "ours smoothing": SmoothingOnly(subject.model, **SETTINGS),
        "ours MinimalSDSGSM": MinimalSDSGSM(subject.model, eps=EPS, steps=STEPS),
        "ours BIM, 20 steps graphs": BIM(subject.model, early_stop=False, **graphed, **SETTINGS),
        "ours BIM, 20 steps no graphs": BIM(subject.model, early_stop=False, **eager, **SETTINGS),
        "ours SD-SGSM no graphs": SDSGSM(subject.model, **eager, **SETTINGS),
        "ours SD-SGSM graphs": SDSGSM(subject.model, **graphed, **SETTINGS),
    }  # fmt: skip
    run = {name: lambda a=attack: a(subject.images, subject.labels) for name, attack in attacks.items()}
    return run, attacks


def attacks(bench: Bench, subject: Subject, counts: list[int]) -> None:
    """Attacks at several batches."""
    for count in counts:
        mine = subject.batch(count)

        def judge(adv: Tensor, mine: Subject = mine) -> dict[str, Any]:
            fooled = (predicted(mine.model, adv) != mine.labels).double().mean()
            return {"success": float(fooled), "l2": float((adv - mine.images).flatten(1).norm(dim=1).mean())}

        programs, watched = own(mine)
        bench.compare("attack", mine, rivals(bench, mine) | programs, judge, watched)


def maps(bench: Bench, subject: Subject, count: int, patch: int, stride: int, many: int) -> None:
    """Occlusion maps; Captum at its default and with `many` windows at once, its best where they fit."""
    mine = subject.batch(count)
    case = Case(mine.name, mine.model, mine.images, patch, stride, 1)
    labels = mine.labels

    def ours(**settings: Any) -> Program:
        return lambda: occlusion_map(mine.model, mine.images, labels, patch=patch, stride=stride, **settings)

    programs: dict[str, Program] = {f"captum {n}": lambda n=n: captum(n, False)(case) for n in (1, 8, many)}
    programs |= {f"captum {n} bfloat16": lambda n=n: captum(n, True)(case) for n in (8, many)}
    programs |= {
        "ours": ours(), "ours float32": ours(precision="float32"), "ours bfloat16": ours(precision="bfloat16"),
        "ours dense": ours(precision="float32", method="dense"),
    }  # fmt: skip
    with without_tf32(mine.images.device):
        exact = loop(case)

    def judge(found: Tensor) -> dict[str, Any]:
        return {"deviation": float((found - exact).abs().max()), "of": float(exact.abs().max())}

    bench.compare(f"map, patch {patch}, stride {stride}", mine, programs, judge, {})


def fused_convolutions(bench: Bench, subject: Subject, count: int) -> None:
    """CuDNN's fused convolutions, which are off: whether they should be on, cold ("first") and warm."""
    mine = subject.batch(count)
    for enabled in (False, True):
        with changed(cudnn, "ENABLED", enabled):
            name = f"ours BIM, 20 steps, fused convolutions {'on' if enabled else 'off'}"
            run = {name: _bound(BIM(mine.model, early_stop=False, cuda_graphs=False, **SETTINGS), mine)}
            bench.compare("fused convolutions", mine, run, lambda adv: {}, {})


def sweeps(bench: Bench, subject: Subject, count: int) -> None:
    """The limits that nobody has measured: slots, windows of a pass, rows of a graph."""
    mine = subject.batch(count)
    attack = {
        f"ours BIM, 20 steps, {slots} slots": BIM(mine.model, early_stop=False, batch_size=slots, **SETTINGS)
        for slots in ((2, 4) if bench.small else (256, 512, 1024, 2048, 4096, 8192))
    }
    programs: dict[str, Program] = {n: lambda a=a: a(mine.images, mine.labels) for n, a in attack.items()}
    bench.compare("slots", mine, programs, lambda adv: {}, {})
    few = subject.batch(2 if bench.small else 64)
    for chunk in (2,) if bench.small else (256, 1024, 4096, 16384):
        for name, method in (("dense", "dense"), ("incremental", "auto")):
            with changed(window_runner, "CUDA_CHUNK", chunk):
                run = {f"ours map {name}, {chunk} windows": lambda m=method: occlusion_map(
                    few.model, few.images, few.labels, patch=4, precision="float32", method=m)}  # fmt: skip
                bench.compare("windows", few, run, lambda found: {}, {})
    if mine.images.is_cuda:
        for rows in (64, 256, 1024, 4096):
            part = subject.batch(rows)
            with changed(graphs, "LARGEST", 8192):
                run = {
                    f"ours BIM, 20 steps{' graphs' * graphed}": _bound(
                        BIM(part.model, early_stop=False, cuda_graphs=graphed, **SETTINGS), part
                    )
                    for graphed in (False, True)
                }
                bench.compare("graphs", part, run, lambda adv: {}, {})


def _bound(attack: Any, subject: Subject) -> Program:
    return lambda: attack(subject.images, subject.labels)


@contextmanager
def changed(module: Any, name: str, value: Any) -> Iterator[None]:
    """A constant with another value for a while."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def line(row: dict[str, Any]) -> str:
    """One row as text."""
    judged = [f"{100 * row['success']:.1f}% fooled"] if "success" in row else []
    judged += [f"off by {row['deviation']:.0e} of {row['of']:.0e}"] if "deviation" in row else []
    judged += [f"{row['waits_a_step']:.1f} waits a step, {row['busy']:.0%} busy"] if "busy" in row else []
    ratio = "" if row["times_best_rival"] is None else f" {row['times_best_rival']:6.2f}× the best rival"
    return (
        f"{row['section']:>24} {row['model'][:9]:>9} {row['batch']:>5} {row['name']:>32} {row['seconds']:8.3f} s "
        f"±{row['spread']:4.0%} {row['images_per_second']:10.1f} images/s{ratio}  {', '.join(judged)}"
    )


def main() -> None:
    """Measure until the time is up, and note what was left out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--prepared", type=Path, help="folder of weights and images")
    parser.add_argument("--small", action="store_true", help="few images, to try the program")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    bench = Bench(parser.parse_args())
    small = bench.small
    sections: list[Callable[[], None]] = [
        lambda: attacks(bench, resnet18(bench), [2] if small else [64, 1024]),
        lambda: fused_convolutions(bench, resnet18(bench), 2 if small else 256),
        lambda: maps(bench, resnet18(bench), 2 if small else 64, 8 if small else 4, 8 if small else 4, 64),
        lambda: attacks(bench, photonet(bench), [2] if small else [64, 1024, 8192]),
        lambda: maps(bench, resnet50(bench), 2 if small else 16, 32, 32, 49),
        lambda: attacks(bench, resnet18(bench), [3] if small else [8192]),
        lambda: maps(bench, photonet(bench), 2 if small else 256, 8 if small else 4, 8 if small else 4, 64),
        lambda: sweeps(bench, resnet18(bench), 4 if small else 8192),
        lambda: attacks(bench, resnet50(bench), [2] if small else [64]),
    ]
    for section in sections:
        try:
            section()
        except Exception as error:  # whatever one section stumbles over, the next is measured
            bench.rows.found["errors"].append({"error": repr(error)[:500]})
            print(repr(error)[:300], flush=True)
    bench.rows.found["clocks_after"] = environment()["nvidia-smi"]
    bench.rows.add([])


if __name__ == "__main__":
    main()
