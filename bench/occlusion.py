"""Occlusion maps against the loop, Captum and one big batch, on whole networks.

    python -m bench occlusion [--quick] [--all] [--rows NAME[:PATCH:STRIDE] ...] [--json FILE]

Each row is one network, batch, patch and stride: seconds (median of interleaved rounds and their
spread), times faster than Captum's default, and the largest deviation of the map from the loop's.

- loop: one clone, zero-out and forward pass a window, the reference.
- captum 1: Captum's default; captum n: its best `perturbations_per_eval` of 1, 8 and 64.
- captum bf16: Captum around the model under bfloat16 autocast, at its best of the same: the fair
  rival of what searches in bfloat16.
- batch: all zeroed-out copies in one forward pass.
- float32, bfloat16, dense (float32 without the incremental plan): `occlusion_map`, for another
  batch of the model that it was called for before; "first" is a model's first call, which also
  plans, lays out weights and checks.
- domain: `Occlusion(rule="top")` at precision "auto"; its deviation is the share of pixels that
  differ from the float32 domain, with the share of windows that were scored twice.

Networks have random weights, but for the embedded classifier; transformers' are there where it is installed.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import random
import statistics
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import nets
import torch
from timing import begin, parser_of, slug
from torch import Tensor, nn

from sdsgsm_fast import Occlusion, decision_domain, occlusion_map, ops
from sdsgsm_fast.common.windows import Windows
from sdsgsm_fast.data.photonet import MEAN, STD, load_photonet
from sdsgsm_fast.data.photos import photo_crops
from sdsgsm_fast.domains import CleanBatch
from sdsgsm_fast.model.classifier import Classifier
from sdsgsm_fast.model.precision import bfloat16_pays

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    try:
        from captum.attr import Occlusion as CaptumOcclusion
    except ImportError:
        CaptumOcclusion = None

EVALUATIONS = (1, 8, 64)
QUICK = ("resnet18-cifar:4:4", "photonet", "vit", "resnet18:16:16", "vit-small", "swin-small")  # one round of each
KEPT = ("float32", "dense", "bfloat16", "domain")  # timed after a call that was not


@dataclass
class Case:
    """One network, its images, and the windows."""

    name: str
    net: nn.Module
    images: Tensor
    patch: int
    stride: int
    rounds: int

    def __post_init__(self) -> None:
        with torch.no_grad():
            self.labels = self.net(self.images).argmax(1)

    def anew(self) -> Case:
        """The same with a model that nobody has seen."""
        other = copy.copy(self)
        other.net = copy.deepcopy(self.net)
        return other

    def scaled(self) -> Case:
        """The same with a handful of windows, to warm up with."""
        size = self.images.shape[2] // 2
        return Case(self.name, self.net, self.images[:2], size, size, 1)


class Loop(nn.Module):
    """Softmax probabilities: what all of them score."""

    def __init__(self, net: nn.Module, reduced: bool = False) -> None:
        super().__init__()
        self.net, self.reduced = net, reduced

    def forward(self, x: Tensor) -> Tensor:
        """(B, K) in float32."""
        with torch.autocast(x.device.type, torch.bfloat16) if self.reduced else nullcontext():
            logits = self.net(x)
        return logits.float().softmax(1)


@torch.no_grad()
def loop(case: Case) -> Tensor:
    """Equations 1 and 2 window by window."""
    model, images = Loop(case.net), case.images
    windows = Windows.over(*images.shape[2:], case.patch, case.stride)
    rows = torch.arange(len(images))
    clean = model(images)[rows, case.labels]
    total = torch.zeros(len(images), *images.shape[2:], device=images.device)
    cover = torch.zeros_like(total[0])
    for y, x in windows:
        copy = images.clone()
        copy[:, :, y, x] = 0
        off = clean - model(copy)[rows, case.labels]
        total[:, y, x] += off[:, None, None]
        cover[y, x] += 1
    return total / cover


def captum(evaluations: int, reduced: bool) -> Callable[[Case], Tensor]:
    """Captum with so many windows a forward pass."""
    if CaptumOcclusion is None:
        return grouped(evaluations, reduced)

    @torch.no_grad()
    def run(case: Case) -> Tensor:
        channels = case.images.shape[1]
        found = CaptumOcclusion(Loop(case.net, reduced)).attribute(
            case.images, sliding_window_shapes=(channels, case.patch, case.patch),
            strides=(channels, case.stride, case.stride), baselines=0, target=case.labels,
            perturbations_per_eval=evaluations,
        )  # fmt: skip
        heat: Tensor = found[:, 0]
        return heat

    return run


def grouped(evaluations: int, reduced: bool) -> Callable[[Case], Tensor]:
    """The same passes as Captum's, with less around them; stands in where Captum is missing."""

    @torch.no_grad()
    def run(case: Case) -> Tensor:
        images, model = case.images, Loop(case.net, reduced)
        windows = Windows.over(*images.shape[2:], case.patch, case.stride)
        target = case.labels[:, None]
        before, off = model(images).gather(1, target), []
        for first in range(0, len(windows), evaluations):
            copies = images[None].repeat(min(evaluations, len(windows) - first), 1, 1, 1, 1)
            for k, zeroed in enumerate(copies):
                zeroed[(slice(None), slice(None), *windows[first + k])] = 0
            after = model(copies.flatten(0, 1)).unflatten(0, (len(copies), -1))
            off.append(before.T - after.gather(2, target.expand(len(copies), -1, -1))[..., 0])
        return ops.window_mean(torch.cat(off).T, *images.shape[2:], patch=case.patch,
                               stride=case.stride)  # fmt: skip

    return run


@torch.no_grad()
def batch(case: Case) -> Tensor:
    """Everything at once."""
    windows = Windows.over(*case.images.shape[2:], case.patch, case.stride)
    copies = ops.occlude(case.images, 0, len(windows), patch=case.patch, stride=case.stride)
    model, count = Loop(case.net), len(windows)
    rows = torch.arange(len(case.images)).repeat_interleave(count)
    after = model(copies)[torch.arange(len(copies)), case.labels[rows]].unflatten(0, (-1, count))
    before = model(case.images).gather(1, case.labels[:, None])
    return ops.window_mean(before - after, *case.images.shape[2:], patch=case.patch,
                           stride=case.stride)  # fmt: skip


def ours(**settings: Any) -> Callable[[Case], Tensor]:
    """`occlusion_map` with these settings."""
    return lambda case: occlusion_map(
        case.net, case.images, case.labels, patch=case.patch, stride=case.stride, **settings
    )


def measured_domain(case: Case) -> Any:
    """The domain of an attack at precision "auto"."""
    classifier = Classifier(case.net)
    with classifier.frozen():
        clean = CleanBatch(classifier, case.images, case.labels, None, classifier.logits(case.images), None)
        return Occlusion(patch=case.patch, stride=case.stride).measure(clean)


def domain(case: Case) -> Tensor:
    """The domain as a map."""
    found: Tensor = measured_domain(case).domain
    return found


def seconds(run: Callable[[Case], Tensor], case: Case) -> tuple[float, Tensor]:
    """Time one call."""
    wait = torch.cuda.synchronize if case.images.is_cuda else lambda: None
    wait()
    start = time.perf_counter()
    result = run(case)
    wait()
    return time.perf_counter() - start, result


def peak_memory(run: Callable[[Case], Tensor], case: Case) -> int | None:
    """Bytes that one call takes at most on a GPU, beyond what was there; None on a CPU."""
    if not case.images.is_cuda:
        return None
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run(case)
    return torch.cuda.max_memory_allocated() - before


def best_captum(case: Case, reduced: bool) -> tuple[int, Callable[[Case], Tensor]]:
    """Captum at its fastest; on large networks judged on a part of the windows."""
    trial = case if case.rounds > 1 else Case(case.name, case.net, case.images, 4 * case.patch,
                                              4 * case.stride, 1)  # fmt: skip
    times = {n: seconds(captum(n, reduced), trial)[0] for n in EVALUATIONS}
    best = min(times, key=times.__getitem__)
    return best, captum(best, reduced)


def measure(case: Case, quick: bool) -> list[dict[str, Any]]:
    """Rows of one case."""
    candidates: dict[str, Callable[[Case], Tensor]] = {
        "loop": loop, "captum 1": captum(1, False), "float32": ours(precision="float32"),
        "dense": ours(precision="float32", method="dense"), "bfloat16": ours(precision="bfloat16"),
        "domain": domain,
        "float32 first": ours(precision="float32"),
        "bfloat16 first": ours(precision="bfloat16"),
    }  # fmt: skip
    small = case.scaled()
    for run in (*candidates.values(), captum(1, True)):
        run(small)
    evaluations = {}
    if not quick:
        evaluations["captum n"], candidates["captum n"] = best_captum(case, False)
        candidates["batch"] = batch
    evaluations["captum bf16"], candidates["captum bf16"] = best_captum(case, True)
    times: dict[str, list[float]] = {name: [] for name in candidates}
    results: dict[str, Tensor] = {}
    order = list(candidates)
    shuffle = random.Random(0).shuffle
    for _ in range(1 if quick else case.rounds):
        shuffle(order)
        for name in order:
            if name in KEPT:
                candidates[name](case)
            mine = case.anew() if name.endswith("first") else case
            taken, results[name] = seconds(candidates[name], mine)
            times[name].append(taken)
    exact = results["loop"]
    strict = decision_domain(results["float32"])
    median = {name: statistics.median(taken) for name, taken in times.items()}
    rivals = ("loop", "captum 1", "captum n", "batch")
    best = min(median[name] for name in rivals if name in median)
    rows = []
    for name in candidates:
        row: dict[str, Any] = {
            "net": case.name, "batch": len(case.images), "patch": case.patch,
            "stride": case.stride, "name": name, "seconds": median[name],
            "spread": (max(times[name]) - min(times[name])) / median[name],
            "times_captum": median["captum 1"] / median[name],
            "times_fair": median["captum bf16"] / median[name],
            "times_best": best / median[name],
            "deviation": float((results[name] - exact).abs().max()),
            "of": float(exact.abs().max()), "evaluations": evaluations.get(name),
            "peak_bytes": peak_memory(candidates[name], case),
        }  # fmt: skip
        if name == "domain":
            row["deviation"] = float((results[name] != strict).double().mean())
            again = measured_domain(case).rescored
            windows = len(Windows.over(*case.images.shape[2:], case.patch, case.stride))
            row["rescored"] = 0.0 if again is None else float(again.double().mean()) / windows
        rows.append(row)
    return rows


def line(row: dict[str, Any]) -> str:
    """One row as text."""
    extra = {
        "domain": f"pixels differ, {row.get('rescored', 0):.0%} of the windows scored twice",
    }.get(row["name"], f"of {row['of']:.0e}")
    per = "" if row["evaluations"] is None else f" ({row['evaluations']} a pass)"
    return (
        f"{row['net']:>15} {row['batch']:>3} p{row['patch']} s{row['stride']} {row['name']:>11} "
        f"{row['seconds']:8.3f} s ±{row['spread']:4.0%} {row['times_captum']:6.2f}× captum "
        f"{row['times_fair']:6.2f}× fair {row['times_best']:6.2f}× best  "
        f"off by {row['deviation']:.0e} {extra}{per}"
    )


TRANSFORMERS: dict[str, tuple[str, dict[str, Any], int, int, int]] = {
    "vit-small": ("ViT", {"image_size": 32, "patch_size": 4, "hidden_size": 192, "num_hidden_layers": 6,
                          "num_attention_heads": 3, "intermediate_size": 768}, 32, 8, 4),
    "vit-tiny": ("ViT", {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}, 224, 1, 32),
    "swin-small": ("Swin", {"image_size": 32, "patch_size": 2, "embed_dim": 48, "depths": [2, 2, 2],
                            "num_heads": [2, 4, 8], "window_size": 4}, 32, 8, 4),
    "swin-tiny": ("Swin", {}, 224, 1, 32),
    "dinov2-small": ("Dinov2", {"image_size": 32, "patch_size": 4, "hidden_size": 192, "num_hidden_layers": 6,
                                "num_attention_heads": 3, "mlp_ratio": 4}, 32, 8, 4),
    "convnext-small": ("ConvNext", {"patch_size": 2, "hidden_sizes": [48, 96, 192], "depths": [2, 2, 4],
                                    "num_stages": 3}, 32, 8, 4),
    "mobilenetv2": ("MobileNetV2", {"image_size": 96}, 96, 4, 12),
}  # fmt: skip
"""Networks of the package transformers: class and settings, image size, batch and patch."""


class _Logits(nn.Module):
    """A network of transformers with random weights, which gives its logits alone."""

    def __init__(self, kind: str, settings: dict[str, Any]) -> None:
        super().__init__()
        package = importlib.import_module("transformers")
        config = getattr(package, f"{kind}Config")(num_labels=10, **settings)
        self.net = getattr(package, f"{kind}ForImageClassification")(config)
        size = config.image_size if isinstance(config.image_size, int) else config.image_size[0]
        with torch.no_grad():  # statistics of batch norms
            self.net.train()(torch.rand(16, 3, size, size))
        self.net.eval()

    def forward(self, x: Tensor) -> Tensor:
        """(B, 10)."""
        logits: Tensor = self.net(x).logits
        return logits


def cases(device: str, wanted: list[str], everything: bool) -> list[Callable[[], Case]]:
    """What is measured; each is built when its turn comes."""

    def case(
        name: str, make: Callable[[], nn.Module], count: int, size: int, patch: int, stride: int,
        rounds: int = 3,
    ) -> tuple[str, Callable[[], Case]]:  # fmt: skip
        def build() -> Case:
            images = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))
            return Case(name, make().to(device), images.to(device), patch, stride, rounds)

        return f"{name}:{patch}:{stride}", build

    def embedded() -> Case:
        images = photo_crops("test", 26)[0][:256]
        net = nn.Sequential(_Normalise(), load_photonet())
        return Case("photonet", net.to(device), images.to(device), 4, 4, 3)

    listed = [
        case("resnet18-cifar", nets.resnet18_cifar, 8, 32, 4, 4),
        case("resnet18-cifar", nets.resnet18_cifar, 8, 32, 8, 4),
        case("resnet18-cifar", nets.resnet18_cifar, 8, 32, 4, 2),
        ("photonet:4:4", embedded),
        case("vit", nets.vit, 8, 32, 4, 4),
        case("resnet18", nets.resnet18, 1, 224, 16, 16),
        case("resnet18", nets.resnet18, 1, 224, 16, 8),
        case("vgg16", nets.vgg16, 1, 224, 16, 16, 1),
    ]
    if importlib.util.find_spec("transformers") is not None:
        for name, (kind, settings, size, batch, patch) in TRANSFORMERS.items():
            make = partial(_Logits, kind, settings)
            listed += [case(name, make, count, size, patch, patch) for count in sorted({batch, 1})]
    if everything:
        listed.append(case("vgg16", nets.vgg16, 1, 224, 16, 8, 1))
    found = [
        build for name, build in listed
        if not wanted or any(f"{name}:".startswith(f"{one}:") for one in wanted)
    ]  # fmt: skip
    if not found:
        raise SystemExit(f"--rows: expected some of {', '.join(name for name, _ in listed)}")
    return found


class _Normalise(nn.Module):
    """The embedded classifier's normalisation as a layer, since Captum has none."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None])
        self.register_buffer("std", torch.tensor(STD)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """(x − mean)/std."""
        result: Tensor = (x - self.mean) / self.std
        return result


def main() -> None:
    """Measure, print and write."""
    parser = parser_of(__doc__)
    parser.add_argument("--all", action="store_true", help="also VGG-16 at stride 8: ten minutes")
    parser.add_argument("--rows", nargs="*", default=[], help="networks; default all, with --quick " + ", ".join(QUICK))
    args = parser.parse_args()
    rows = begin("occlusion", args, line, ("captum", "transformers"), part=slug("-".join(args.rows)))
    rows.found["bfloat16_pays"] = bfloat16_pays(torch.device(args.device))
    rows.found["captum"] = CaptumOcclusion is not None
    print(f"bfloat16 pays for one pass on this machine: {rows.found['bfloat16_pays']}")
    if CaptumOcclusion is None:
        print("captum is not installed: its rows are the same passes in a leaner loop")
    wanted = args.rows or (list(QUICK) if args.quick and not args.all else [])
    for build in cases(args.device, wanted, args.all):
        rows.add(measure(build(), args.quick))


if __name__ == "__main__":
    main()
