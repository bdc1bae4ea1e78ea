"""A small run of the GPU kernels against the reference, for compute-sanitizer to watch.

    compute-sanitizer --tool memcheck --error-exitcode 9 python bench/gpu/sanitize.py [native|triton]
    ncu python bench/gpu/sanitize.py --profile

With --profile four kernels run on large tensors instead, for a profiler.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from typing import Any

import torch

from sdsgsm_fast import ops

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((3, 3, 5, 7), (5, 3, 32, 32), (2, 3, 101, 97), (2, 3, 224, 224), (1, 3, 512, 512))


def check(found: torch.Tensor, expected: torch.Tensor, near: float) -> None:
    """Stop where a kernel is wrong."""
    worst = float((found.cpu().double() - expected.double()).abs().max())
    if not worst <= near:
        sys.exit(f"off by {worst:.1e}")


def on(device: str, values: Any) -> Any:
    """Tensors, alone or in lists and dictionaries, on a device."""
    if isinstance(values, dict):
        return {name: on(device, value) for name, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [on(device, value) for value in values]
    return values.to(device) if isinstance(values, torch.Tensor) else values


def both(run: Callable[..., Any], backend: str, *given: Any, **settings: Any) -> tuple[Any, Any]:
    """Results of a kernel, and of the reference on the CPU: the sanitizer would watch its kernels, too."""
    found = run(*on("cuda", given), **on("cuda", settings), backend=backend)
    return found, run(*given, **settings, backend="reference")


def profiled() -> None:
    """Run both updates, an occlusion and a paste, all far larger than a cache."""
    images = torch.rand(16384, 3, 32, 32, device="cuda")
    grad, domain = torch.randn_like(images), torch.rand(16384, 32, 32, device="cuda")
    for backend in ("native", "triton"):
        ops.update(images, images, grad, domain, eps=0.03, alpha=0.004, background=0.5, backend=backend)
    ops.occlude(images[:64], 0, 64, patch=4, mean=0.4, std=0.2, channels_last=True, backend="native")
    maps, crops = torch.randn(64, 64, 32, 32, device="cuda"), torch.randn(4096, 64, 10, 10, device="cuda")
    where = [torch.arange(4096, device="cuda", dtype=torch.int32) % n for n in (64, 20, 20)]
    along = torch.tensor([(s, s + 1, s + 11) for s in range(20)], device="cuda", dtype=torch.int32)
    ops.paste(maps, crops, *where, along, along, height=12, width=12, backend="native")
    torch.cuda.synchronize()


def main() -> None:
    """Run the kernels of one backend, or of both."""
    torch.manual_seed(0)
    if sys.argv[1:] == ["--profile"]:
        profiled()
        return
    for backend in sys.argv[1:] or ("native", "triton"):
        for i, (shape, normalize) in enumerate(itertools.product(SHAPES, ops.NORMALIZE)):
            batch = shape[0]
            images, grad = torch.rand(shape), torch.randn(shape).to(DTYPES[i % 3])
            each = torch.rand(batch) / 10
            arguments: dict[str, Any] = {
                "eps": each, "alpha": 0.02, "background": each, "decay": 0.5, "momentum": torch.randn(shape),
                "normalize": normalize, "active": torch.arange(batch) != 1,
            }  # fmt: skip
            domain = torch.rand(batch, *shape[2:])
            for layout in (torch.contiguous_format, torch.channels_last):
                x, g = (t.contiguous(memory_format=layout) for t in (images, grad))
                found, expected = both(ops.update, backend, x, x, g, domain, **arguments)
                check(found[0], expected[0], 2e-6)
                check(found[1], expected[1], 1e-4)
        images, scores = torch.rand(2, 3, 37, 41), torch.rand(2, 54)
        for last in (False, True):
            check(*both(ops.occlude, backend, images, 3, 20, patch=(8, 5), channels_last=last), 0.0)
        check(*both(ops.window_mean, backend, scores, 38, 48, patch=8, stride=(6, 5)), 0.0)
        maps, crops = torch.randn(2, 12, 9, 11), torch.randn(40, 12, 4, 4)
        where = [torch.arange(40, dtype=torch.int32) % n for n in (2, 3, 4)]
        rows, cols = (
            torch.tensor([(s, s + 1, s + 5) for s in starts], dtype=torch.int32)
            for starts in ((-1, 2, 4), (-1, 2, 5, 6))
        )
        check(*both(ops.paste, backend, maps, crops, *where, rows, cols, height=6, width=6, pad=0.5), 0.0)
        torch.cuda.synchronize()
        print(f"{backend}: agrees with the reference", flush=True)


if __name__ == "__main__":
    main()
