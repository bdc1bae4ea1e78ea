"""Microbenchmark of the update: the kernels against eager PyTorch, torch.compile and the memory.

    python -m bench update [--quick] [--json FILE]

Each row is one shape and gradient dtype: milliseconds (median of interleaved rounds and spread),
the largest deviation from the reference of what was timed, the bandwidth (bytes that the update
must move: adv, images and gradient read, adv written, the domain read once, over the time) and
its share of a triad with the same streams, ``addcmul(a, b, c, out=a)``, and of a plain copy, both
measured in the same rounds. The smallest shape is called 20 times in a row: it is in the cache.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

import torch
from timing import Timing, begin, interleaved, parser_of
from torch import Tensor

from sdsgsm_fast import ops
from sdsgsm_fast.kernels import native, reference, triton
from sdsgsm_fast.kernels.calls import Update

SHAPES = ((64, 3, 32, 32), (1024, 3, 32, 32), (16384, 3, 32, 32), (64, 3, 224, 224))
IN_CACHE = 20  # calls in a row of the shape that fits into a cache
SETTINGS: dict[str, Any] = {"eps": 8 / 255, "alpha": 1 / 255, "background": 0.5}


def tensors(shape: tuple[int, ...], grad_dtype: torch.dtype, device: str) -> dict[str, Tensor]:
    """Random arguments of an update."""
    images = torch.rand(shape, device=device)
    domain = (torch.rand(shape[0], *shape[2:], device=device) < 0.25).float()
    grad = torch.randn(shape, device=device).to(grad_dtype)
    return {"adv": images.clone(), "images": images, "grad": grad, "domain": domain}


def eager(t: dict[str, Tensor]) -> Tensor:
    """The reference's arithmetic, in place."""
    call = Update(
        **t, momentum=None, active=None, **SETTINGS, gain=1.0, decay=0.0, bounds=(0.0, 1.0),
        sign=1.0, normalize="mean_abs",
    )  # fmt: skip
    reference.update(t["adv"], None, call)
    return t["adv"]


def formula(adv: Tensor, images: Tensor, grad: Tensor, domain: Tensor) -> Tensor:
    """The same update as a user would write it for torch.compile: float32, no checks."""
    eps, alpha, background = SETTINGS.values()
    g = grad.float()
    velocity = g / g.abs().mean((1, 2, 3), keepdim=True).clamp(min=1e-20)
    weight = (background + (1 - background) * domain)[:, None]
    moved = adv + alpha * weight * torch.tanh(velocity)
    low, high = (images - eps * weight).clamp(min=0.0), (images + eps * weight).clamp(max=1.0)
    return adv.copy_(moved.maximum(low).minimum(high))


def candidates(t: dict[str, Tensor], *, compile: bool) -> dict[str, Callable[[], Any]]:
    """What is timed, by name."""
    triad = [torch.rand_like(t["adv"]) for _ in range(3)]
    found: dict[str, Callable[[], Any]] = {
        "copy": lambda: triad[1].copy_(triad[2]),
        "triad": lambda: torch.addcmul(triad[0], triad[1], triad[2], value=1e-9, out=triad[0]),
        "eager": lambda: eager(t),
    }
    if compile:
        for name, mode in (("compile", None), ("compile max", "max-autotune-no-cudagraphs")):
            fast = torch.compile(formula, mode=mode, dynamic=False)
            found[name] = lambda fast=fast: fast(**t)
    kernels = {"native": native, "triton": triton}
    for name, backend in kernels.items():
        if backend.supports(t["adv"]) and not (name == "triton" and triton.interpreted()):
            found[name] = lambda name=name: ops.update_(**t, **SETTINGS, backend=name)
    return found


def deviations(t: dict[str, Tensor], timed: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Largest difference of one step of each candidate from the reference in float64."""
    start = t["images"].clone()
    wide = {k: v.double() for k, v in t.items()} | {"adv": start.double()}
    expected = eager(wide)
    worst = {}
    for name, run in timed.items():
        if name not in ("copy", "triad"):
            t["adv"].copy_(start)
            run()
            worst[name] = float((t["adv"] - expected).abs().max())
    return worst


def measure(shape: tuple[int, ...], grad_dtype: torch.dtype, args: argparse.Namespace) -> list[Any]:
    """Rows of one shape and gradient dtype."""
    torch._dynamo.reset()
    t = tensors(shape, grad_dtype, args.device)
    timed = candidates(t, compile=not args.quick)
    worst = deviations(t, timed)
    values = math.prod(shape)
    traffic = values * (3 * 4 + t["grad"].element_size()) + t["domain"].numel() * 4
    rounds = max(7, min(200, int(2e8 / values) if not args.quick else 5))
    repeat = IN_CACHE if values < 1e6 else 1
    times: dict[str, Timing] = interleaved(timed, rounds=rounds, repeat=repeat)
    bytes_of = {name: {"copy": 8 * values, "triad": 16 * values}.get(name, traffic) for name in times}
    bandwidth = {name: bytes_of[name] / time.median for name, time in times.items()}
    return [
        {
            "shape": list(shape), "grad": str(grad_dtype).removeprefix("torch."), "name": name,
            "ms": 1e3 * time.median, "spread": time.spread,
            "times_eager": times["eager"].median / time.median, "bytes": bytes_of[name],
            "GB/s": bandwidth[name] / 1e9, "share_of_triad": bandwidth[name] / bandwidth["triad"],
            "share_of_copy": bandwidth[name] / bandwidth["copy"], "deviation": worst.get(name),
        }
        for name, time in times.items()
    ]  # fmt: skip


def overhead(device: str) -> list[Any]:
    """Microseconds of one call on a 4×4 image, lower quartile of batches: what a call costs."""
    t = tensors((1, 1, 4, 4), torch.float32, device)

    def batch() -> None:
        for _ in range(1000):
            ops.update_(**t, **SETTINGS)

    timing = interleaved({"call": batch}, rounds=15)["call"]
    return [{"name": "overhead of a call", "us": timing.low * 1e3, "spread": timing.spread}]


def line(row: dict[str, Any]) -> str:
    """One row as text."""
    if "us" in row:
        return f"{row['name']}: {row['us']:.1f} µs"
    deviation = "" if row["deviation"] is None else f"off by {row['deviation']:.0e}"
    shape = "×".join(map(str, row["shape"]))
    return (
        f"{shape:>16} {row['grad']:>8} {row['name']:>12} {row['ms']:9.3f} ms ±{row['spread']:4.0%} "
        f"{row['times_eager']:6.1f}× eager {row['GB/s']:7.1f} GB/s {row['share_of_triad']:5.0%} of "
        f"triad {row['share_of_copy']:5.0%} of copy  {deviation}"
    )


def main() -> None:
    """Measure, print and write."""
    args = parser_of(__doc__).parse_args()
    rows = begin("update", args, line)
    rows.add(overhead(args.device))
    for shape in SHAPES:
        for grad_dtype in (torch.float32, torch.bfloat16):
            rows.add(measure(shape, grad_dtype, args))


if __name__ == "__main__":
    main()
