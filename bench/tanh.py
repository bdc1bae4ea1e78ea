"""Accuracy of the CPU kernels' tanh over every float32 from 0 to 32, for each instruction set.

    python bench/tanh.py

tanh is odd in the kernel's bits too (the sign is set apart), and is 1 beyond. Takes two minutes.
"""

from __future__ import annotations

import math

import torch

from sdsgsm_fast import _native_cpu, ops

LAST = 0x42000000  # the bits of 32
STEP = 1 << 24


def worst_ulp() -> float:
    """Largest error in units of the last place of the correctly rounded result."""
    worst = 0.0
    for start in range(0, LAST, STEP):
        bits = torch.arange(start, min(start + STEP, LAST), dtype=torch.int32)
        grad = bits.view(torch.float32).view(1, 1, 1, -1)
        zero = torch.zeros_like(grad)
        # adv = 0, α = 1, wide bounds and no normalisation: the update is tanh of the gradient.
        found, _ = ops.update(
            zero, zero, grad, None, eps=4.0, alpha=1.0, background=1.0, bounds=(-4.0, 4.0),
            normalize="none", backend="native",
        )  # fmt: skip
        exact = grad.double().tanh()
        rounded = exact.float()
        ulp = torch.nextafter(rounded, torch.tensor(math.inf)) - rounded
        worst = max(worst, float(((found.double() - exact).abs() / ulp.double()).max()))
    return worst


def main() -> None:
    """Measure each instruction set that this machine can run."""
    for isa in _native_cpu.isas():
        _native_cpu.use_isa(isa)
        print(f"{isa}: {LAST} floats, worst {worst_ulp():.3f} ulp", flush=True)


if __name__ == "__main__":
    main()
