"""Whole attacks against the field's, in images a second.

    python -m bench attack [--quick] [--rows NAME ...] [--json FILE]

Every attack has ε = 8/255, α = 1/255 and at most 20 updates, and is given images that the model
gets right. Success is judged afterwards by the model in float32, whatever the attack says.
Sections, for --rows:

  photonet, resnet18   the attacks of this library and of torchattacks, foolbox and adv-lib, where
                       they are installed, on the embedded classifier and on a ResNet-18 that is
                       trained here once (bench/.cache); interleaved, medians. "20 steps" has no
                       early stop, as if no image could be fooled. "plain" is METHOD.md written
                       down without a thought for speed: a loop over the windows, all steps for all.
  vit                  the same on a small transformer with random weights.
  overhead             share of the time outside the model's forward and backward passes.
  stream               5000 images in batches of 250 through `stream`, and by `run` batch by batch.
  resnet50             on a GPU only, with random weights.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import resource
import statistics
import sys
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nets
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from timing import begin, parser_of
from torch import Tensor, nn

from sdsgsm_fast import BIM, PGD, SDSGSM, Attack, Occlusion, SmoothingOnly, decision_domain, ops
from sdsgsm_fast.common.windows import Windows
from sdsgsm_fast.data.photonet import MEAN, STD, load_photonet
from sdsgsm_fast.data.photos import photo_crops
from sdsgsm_fast.loop import Loop

sys.path.append(str(Path(__file__).parents[1] / "scripts"))
from train_photonet import train

EPS, ALPHA, STEPS = 8 / 255, 1 / 255, 20
CACHE = Path(__file__).parent / ".cache"
QUICK = ("photonet", "vit", "stream")  # sections that need no trained ResNet-18
SETTINGS: dict[str, Any] = {"eps": EPS, "alpha": ALPHA, "steps": STEPS}

Run = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""An attack: model, images and labels to adversarial images."""


class Normalised(nn.Module):
    """A network with its normalisation as a layer, since rivals have none or their own."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        for name, value in (("mean", MEAN), ("std", STD)):
            self.register_buffer(name, torch.tensor(value)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images in [0, 1]."""
        logits: Tensor = self.net((x - self.mean) / self.std)
        return logits


# Models


def trained_resnet18() -> nn.Module:
    """A CIFAR-style ResNet-18, trained once as the embedded classifier was; in some ten minutes."""
    path = CACHE / "resnet18.safetensors"
    if path.is_file():
        net = nets.resnet18_cifar(classes=10)
        net.load_state_dict(load_file(path))
        return net.eval()
    print("training the ResNet-18 ...", flush=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    make = partial(nets.resnet18_cifar, classes=10)
    net = train(make, epochs=6, per_class=640, batch=64, seed=0, lr=0.01, device=device)
    CACHE.mkdir(exist_ok=True)
    save_file(net.state_dict(), path)
    return net


def small_net() -> nn.Module:
    """A network of 5 thousand parameters: every microsecond around it shows."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, 2, 1), nn.ReLU(), nn.Conv2d(12, 20, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(320, 8),
    ).eval()  # fmt: skip


@torch.no_grad()
def predicted(model: nn.Module, images: Tensor) -> Tensor:
    """Predicted classes, in float32 and in small batches."""
    return torch.cat([model(part).argmax(1) for part in images.split(64)])


def right_images(model: nn.Module, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """`count` test crops that a model gets right, repeated if there are fewer."""
    images, labels = photo_crops("test", max(2, count // 8), seed=seed)
    device = next(model.parameters()).device
    images, labels = images.to(device), labels.to(device)
    right = (predicted(model, images) == labels).nonzero().flatten()
    right = right[torch.randperm(len(right), generator=torch.Generator().manual_seed(0))]
    rows = right.repeat(-(-count // len(right)))[:count]
    return images[rows].contiguous(), labels[rows].contiguous()


# Attacks


def ours(kind: type[Attack], **settings: Any) -> Run:
    """An attack of this library; one object for all calls, as its users have it."""
    made: dict[int, Attack] = {}

    def run(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        if id(model) not in made:
            made[id(model)] = kind(model, **{**SETTINGS, **settings})
        return made[id(model)](images, labels)

    return run


def torchattack(name: str) -> Run:
    """An attack of torchattacks."""
    library = importlib.import_module("torchattacks")

    def run(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        attack = getattr(library, name)(model, eps=EPS, alpha=ALPHA, steps=STEPS)
        adv: Tensor = attack(images, labels)
        return adv

    return run


def pgd_by_hand(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """PGD as torchattacks writes it, with less around it; stands in where that is missing."""
    adv = (images + torch.empty_like(images).uniform_(-EPS, EPS)).clamp(0, 1)
    for _ in range(STEPS):
        leaf = adv.detach().requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(model(leaf), labels), leaf)
        adv = (adv + ALPHA * grad.sign()).clamp(images - EPS, images + EPS).clamp(0, 1)
    return adv


def foolbox_pgd() -> Run:
    """PGD of foolbox."""
    foolbox = importlib.import_module("foolbox")

    def run(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        attack = foolbox.attacks.LinfPGD(abs_stepsize=ALPHA, steps=STEPS)
        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=images.device)
        _, adv, _ = attack(wrapped, images, labels, epsilons=EPS)
        found: Tensor = adv
        return found

    return run


def adv_lib_pgd() -> Run:
    """PGD of adv-lib."""
    # It imports these for a distance and for plots; PGD works without.
    for name, part in (("torchvision", "models"), ("visdom", "Visdom")):
        if name not in sys.modules and importlib.util.find_spec(name) is None:
            sys.modules[name] = types.ModuleType(name)
            setattr(sys.modules[name], part, None)
    pgd = importlib.import_module("adv_lib.attacks").pgd_linf

    def run(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        adv: Tensor = pgd(model, images, labels, EPS, steps=STEPS, absolute_step_size=ALPHA)
        return adv

    return run


def plain(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """SD-SGSM as METHOD.md writes it, in plain PyTorch: every window and every step in full."""
    windows = Windows.over(*images.shape[2:], 4)
    rows = torch.arange(len(images), device=images.device)
    with torch.no_grad():
        clean = model(images).softmax(1)[rows, labels]
        scores = []
        for y, x in windows:
            copy = images.clone()
            copy[:, :, y, x] = 0
            scores.append(clean - model(copy).softmax(1)[rows, labels])
    sensitivity_map = ops.window_mean(torch.stack(scores, 1), *images.shape[2:], patch=4, backend="reference")
    domain = decision_domain(sensitivity_map)
    adv, alive = images.clone(), torch.ones_like(labels, dtype=torch.bool)
    for step in range(STEPS + 1):
        leaf = adv.clone().requires_grad_()
        logits = model(leaf)
        alive &= logits.argmax(1) == labels
        if step == STEPS:
            break
        loss = F.cross_entropy(logits, labels, reduction="sum")
        (grad,) = torch.autograd.grad(loss, leaf)
        background = 0.5 + 0.5 * min(1, step / (0.6 * STEPS))
        moved, _ = ops.update(
            adv, images, grad, domain, eps=EPS, alpha=ALPHA, background=background,
            backend="reference",
        )  # fmt: skip
        adv = torch.where(alive[:, None, None, None], moved, adv)
    return adv


def rivals() -> tuple[dict[str, Run], dict[str, str]]:
    """What is installed, and why the rest is not there."""
    found: dict[str, Run] = {}
    missing: dict[str, str] = {}
    makers: dict[str, Callable[[], Run]] = {
        "torchattacks PGD": lambda: torchattack("PGD"),
        "torchattacks MI-FGSM": lambda: torchattack("MIFGSM"),
        "foolbox PGD": foolbox_pgd,
        "adv-lib PGD": adv_lib_pgd,
    }
    for name, make in makers.items():
        try:
            found[name] = make()
        except ImportError as error:
            missing[name] = str(error)
    if "torchattacks PGD" in missing:
        found["PGD by hand"] = pgd_by_hand
    return found, missing


OURS: dict[str, Run] = {
    "PGD auto": ours(PGD),
    "BIM float32": ours(BIM, precision="float32"),
    "BIM auto": ours(BIM),
    "BIM float32, 20 steps": ours(BIM, precision="float32", early_stop=False),
    "BIM auto, 20 steps": ours(BIM, early_stop=False),
    "smoothing float32": ours(SmoothingOnly, precision="float32"),
    "smoothing auto": ours(SmoothingOnly),
    "SD-SGSM float32": ours(SDSGSM, precision="float32"),
    "SD-SGSM auto": ours(SDSGSM),
}


# Measurements


def wait() -> None:
    """Let a GPU finish."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(run: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """Time one call."""
    wait()
    start = time.perf_counter()
    result = run()
    wait()
    return time.perf_counter() - start, result


def table(
    name: str, model: nn.Module, images: Tensor, labels: Tensor, rounds: int, quick: bool
) -> list[dict[str, Any]]:
    """Images a second of every attack on one model."""
    count = len(images)
    found, missing = rivals()
    candidates: dict[str, Run] = {**found, **OURS}
    if images.is_cuda:
        candidates |= {f"{kind.__name__} graphs": ours(kind, cuda_graphs=True) for kind in (BIM, SDSGSM)}
    if not quick:
        candidates["plain"] = plain
    few = images[:16], labels[:16]
    for run in candidates.values():
        run(model, *few)
    times: dict[str, list[float]] = {candidate: [] for candidate in candidates}
    fooled: dict[str, float] = {}
    outside: dict[str, float] = {}
    for turn in range(rounds):
        for candidate, run in candidates.items():
            if candidate == "plain" and turn:
                continue  # minutes
            taken, adv = seconds(lambda run=run: run(model, images, labels))
            times[candidate].append(taken)
            fooled[candidate] = float((predicted(model, adv) != labels).double().mean())
            outside[candidate] = float((adv - images).abs().max()) - EPS
    median = {candidate: statistics.median(taken) for candidate, taken in times.items()}
    base = median.get("torchattacks PGD", median.get("PGD by hand"))
    rows = [
        {
            "section": name, "name": candidate, "batch": count, "seconds": median[candidate],
            "spread": (max(taken) - min(taken)) / median[candidate],
            "images_per_second": count / median[candidate],
            "times_torchattacks": base / median[candidate] if base else None,
            "times_plain": None if quick else median["plain"] / median[candidate],
            "success": fooled[candidate], "excess": max(0.0, outside[candidate]),
        }
        for candidate, taken in times.items()
    ]  # fmt: skip
    return rows + [
        {"section": name, "name": k, "batch": count, "seconds": None, "missing": why} for k, why in missing.items()
    ]


@dataclass
class Watch:
    """Seconds inside the model, and images of each gradient pass."""

    inside: float = 0.0
    running: bool = False  # one of the passes, which may ask for another

    def over(self, attack: Attack) -> None:
        """Time the passes of an attack's classifier."""
        for name in ("trace", "gradient", "logits", "verdicts"):
            setattr(attack.classifier, name, self._timed(getattr(attack.classifier, name)))

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **settings: Any) -> Any:
            if self.running:
                return method(*args, **settings)
            self.running = True
            wait()
            start = time.perf_counter()
            found = method(*args, **settings)
            wait()
            self.inside += time.perf_counter() - start
            self.running = False
            return found

        return run


def overhead(name: str, model: nn.Module, count: int, size: int | None, rounds: int) -> list[dict[str, Any]]:
    """Share of the time outside the model, with all steps for all images."""
    images = right_images(model, count)[0] if name != "small net" else torch.rand(count, 3, 32, 32)
    images = images.to(next(model.parameters()).device)
    labels = predicted(model, images)
    rows = []
    for precision in ("float32", "auto"):
        attack = SmoothingOnly(model, precision=precision, early_stop=False, batch_size=size, **SETTINGS)
        attack(images, labels)
        watch = Watch()
        watch.over(attack)
        shares = []
        for _ in range(rounds):
            watch.inside = 0.0
            taken, _ = seconds(lambda attack=attack: attack(images, labels))
            shares.append(1 - watch.inside / taken)
        rows.append(
            {"section": "overhead", "name": f"{name}, {precision}", "batch": count,
             "seconds": taken, "share": statistics.median(shares)}
        )  # fmt: skip
    return rows


def stream(model: nn.Module, total: int, each: int, rounds: int) -> list[dict[str, Any]]:
    """The same images through `stream` and by one `run` a batch, with as many slots."""
    images, labels = right_images(model, total)
    slots = 64 if not images.is_cuda else 4096
    rows = []
    for kind, settings in (
        (SmoothingOnly, {}),
        (SDSGSM, {"domain": Occlusion()}),
    ):
        attack = kind(model, batch_size=slots, **SETTINGS, **settings)
        peaks: list[int] = []

        def streamed(attack: Attack = attack, peaks: list[int] = peaks) -> Tensor:
            peaks.clear()
            found = images.clone()  # memory that is there: its first touch is no growth
            for result in attack.stream(zip(images.split(each), labels.split(each), strict=True)):
                found[result.index] = result.adv
                peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
            return found

        def batches(attack: Attack = attack) -> Tensor:
            parts = zip(images.split(each), labels.split(each), strict=True)
            return torch.cat([attack(x, y) for x, y in parts])

        streamed_times, batch_times = [], []
        for _ in range(rounds):
            gc.collect()
            taken, adv = seconds(streamed)
            streamed_times.append(taken)
            taken, other = seconds(batches)
            batch_times.append(taken)
        equal = (adv - other).abs().flatten(1).amax(1) < 1e-5
        alive = share_alive(attack, images, labels, each, slots)
        rows.append(
            {"section": "stream", "name": kind.__name__, "batch": total,
             "seconds": statistics.median(streamed_times),
             "images_per_second": total / statistics.median(streamed_times),
             "times_run": statistics.median(batch_times) / statistics.median(streamed_times),
             "alive": alive, "equal": float(equal.double().mean()),
             "growth_mb": (peaks[-1] - peaks[len(peaks) // 4]) / 1024}
        )  # fmt: skip
    return rows


def share_alive(attack: Attack, images: Tensor, labels: Tensor, each: int, slots: int) -> float:
    """Mean share of the slots in use over a stream's steps."""
    sizes: list[int] = []
    original = Loop._evaluate_slots

    def look(self: Loop) -> Any:
        sizes.append(len(self.slots.used))
        return original(self)

    Loop._evaluate_slots = look  # type: ignore[method-assign]
    try:
        for _ in attack.stream(zip(images.split(each), labels.split(each), strict=True)):
            pass
    finally:
        Loop._evaluate_slots = original  # type: ignore[method-assign]
    return statistics.mean(sizes) / slots


def line(row: dict[str, Any]) -> str:
    """One row as text."""
    head = f"{row['section']:>9} {row['batch']:>5} {row['name']:>21}"
    if "missing" in row:
        return f"{head}  missing: {row['missing']}"
    if row["section"] == "overhead":
        return f"{head} {row['share']:6.1%} outside the model"
    text = f"{head} {row['seconds']:8.2f} s {row['images_per_second']:9.1f} images/s"
    if row["section"] == "stream":
        return (
            f"{text} {row['times_run']:5.2f}× run, {row['alive']:.1%} of the slots alive, "
            f"{row['equal']:.2%} equal to run's, {row['growth_mb']:.0f} MB more in the last "
            "three quarters"
        )
    ratios = "".join(
        f" {row[key]:6.2f}× {label}"
        for key, label in (("times_torchattacks", "torchattacks"), ("times_plain", "plain"))
        if row[key] is not None
    )
    spread, fooled = f"±{row['spread']:3.0%}", f"{row['success']:.1%} fooled"
    return f"{text} {spread}{ratios}  {fooled}, ε + {row['excess']:.0e}"


def sections(device: str, quick: bool) -> dict[str, Callable[[], list[dict[str, Any]]]]:
    """What is measured, by name."""
    gpu = device == "cuda"
    rounds = 1 if quick else 3

    def photonet() -> nn.Module:
        return Normalised(load_photonet()).eval().to(device)

    def resnet18() -> nn.Module:
        return Normalised(trained_resnet18()).eval().to(device)

    def tables(name: str, make: Callable[[], nn.Module], counts: list[int]) -> list[dict[str, Any]]:
        model = make()
        given = [right_images(model, count) for count in counts]
        return [row for images, labels in given for row in table(name, model, images, labels, rounds, quick)]

    def random(name: str, make: Callable[[], nn.Module], size: int) -> list[dict[str, Any]]:
        model, seeded = make().to(device), torch.Generator().manual_seed(0)
        images = torch.rand(64, 3, size, size, generator=seeded).to(device)
        return table(name, model, images, predicted(model, images), rounds, quick)

    def overheads() -> list[dict[str, Any]]:
        rows = overhead("small net", small_net().to(device), 256, 256, 5)
        return rows + overhead("resnet18", resnet18(), 4096 if gpu else 64, None, 1)

    found: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "photonet": lambda: tables("photonet", photonet, [64, 1024, 8192] if gpu else [256]),
        "resnet18": lambda: tables("resnet18", resnet18, [64, 1024, 8192] if gpu else [64]),
        "vit": lambda: random("vit", nets.vit, 32),
        "overhead": overheads,
        "stream": lambda: stream(photonet(), 1000 if quick else 5000, 250, 1 if quick else 2),
    }
    return found | ({"resnet50": lambda: random("resnet50", nets.resnet50, 224)} if gpu else {})


def main() -> None:
    """Measure, print and write."""
    parser = parser_of(__doc__)
    parser.add_argument(
        "--rows", nargs="*", metavar="NAME", help=f"only these sections; with --quick {', '.join(QUICK)}"
    )
    args = parser.parse_args()
    known = sections(args.device, args.quick)
    wanted = args.rows or [name for name in known if not args.quick or name in QUICK]
    if unknown := set(wanted) - set(known):
        raise SystemExit(f"--rows: expected some of {', '.join(known)}, found {', '.join(unknown)}")
    rows = begin("attack", args, line, ("torchattacks", "foolbox", "adv-lib"), part="-".join(args.rows or []))
    for name in wanted:
        rows.add(known[name]())


if __name__ == "__main__":
    main()
