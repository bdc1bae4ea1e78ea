"""Accuracy of the CPU kernels' tanh over every float32 from 0 to 32, for each instruction set.

    python -m bench tanh [--quick] [--isa NAME] [--json FILE]

tanh is odd in the kernel's bits too (the sign is set apart), and is 1 beyond. With --quick every
seventh float is measured.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from timing import begin, parser_of

from sdsgsm_fast import _native_cpu, ops

LAST = 0x42000000  # the bits of 32
STEP = 1 << 24


def worst_ulp(every: int) -> float:
    """Largest error in units of the last place of the correctly rounded result."""
    worst = 0.0
    for start in range(0, LAST, STEP):
        bits = torch.arange(start, min(start + STEP, LAST), every, dtype=torch.int32)
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


def line(row: dict[str, Any]) -> str:
    """One row as text."""
    return f"{row['name']:>8} {row['floats']:>11} floats, worst {row['ulp']:.3f} ulp"


def main() -> None:
    """Measure each instruction set that this machine can run, or the one that is asked for."""
    args = parser_of(__doc__).parse_args()
    rows = begin("tanh", args, line, device="cpu")
    every = 7 if args.quick else 1
    for isa in [args.isa] if args.isa else _native_cpu.isas():
        _native_cpu.use_isa(isa)
        rows.add([{"name": isa, "floats": LAST // every, "ulp": worst_ulp(every)}])


if __name__ == "__main__":
    main()
