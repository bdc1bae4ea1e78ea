"""Microbenchmark of the batched zero-out against PyTorch and the memory.

    python -m bench occlude [--quick] [--json FILE]

Each row is one shape, dtype and layout of the copies that a model gets: milliseconds (median of
interleaved rounds and spread), the largest deviation from the reference of what was timed, and the
share of the bandwidth of a broadcast copy that writes the same bytes, measured in the same rounds.

- native, triton: the operator. It allocates the copies, as all but "copy" and "into" do: on a CPU
  the kernel's first touch of fresh memory costs more than the kernel; "into" runs it without.
- loop: one clone of the images a window, as in the per-patch loops of the field, concatenated.
- masked: one ``torch.where`` over a mask a window, all at once; compile: the same, compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from timing import begin, interleaved, parser_of
from torch import Tensor

from sdsgsm_fast import ops
from sdsgsm_fast.common.windows import Windows
from sdsgsm_fast.kernels import native, triton
from sdsgsm_fast.kernels.calls import Occlude

# Images, patch and windows: a chunk in cache, and two that are not.
CASES = (((1, 3, 32, 32), 4, 64), ((256, 3, 32, 32), 4, 64), ((2, 3, 224, 224), 16, 196))
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Case:
    """One shape, dtype and layout."""

    def __init__(
        self, shape: tuple[int, ...], patch: int, count: int, dtype: torch.dtype, last: bool,
        device: str,
    ) -> None:  # fmt: skip
        self.images = torch.rand(shape, device=device)
        self.windows = Windows.over(*shape[2:], patch)
        self.patch, self.count, self.dtype = patch, count, dtype
        self.layout = torch.channels_last if last else torch.contiguous_format
        self.mean, self.std = (torch.tensor(v, device=device)[:, None, None] for v in (MEAN, STD))
        self.mask = torch.zeros(count, 1, *shape[2:], dtype=torch.bool, device=device)
        for k in range(count):
            self.mask[(k, 0, *self.windows[k])] = True
        self.out = self.masked().clone(memory_format=self.layout)

    def finished(self, copies: Tensor) -> Tensor:
        """Normalise, convert and lay out."""
        return ((copies - self.mean) / self.std).to(self.dtype, memory_format=self.layout)

    def loop(self) -> Tensor:
        """Clone the batch for each window."""
        found = []
        for k in range(self.count):
            copy = self.images.clone()
            copy[(slice(None), slice(None), *self.windows[k])] = 0.0
            found.append(self.finished(copy))
        return torch.stack(found, 1).flatten(0, 1)

    def masked(self) -> Tensor:
        """Fill all windows at once."""
        copies = torch.where(self.mask, 0.0, self.images[:, None])
        return self.finished(copies.flatten(0, 1))

    def into(self, backend: ModuleType) -> Tensor:
        """The kernel alone, into the memory of an earlier call."""
        fill = (0.0,) * self.images.shape[1]
        call = Occlude(self.images, self.windows, 0, self.count, fill=fill, mean=MEAN, std=STD)
        backend.occlude(self.out, call)
        return self.out

    def kernel(self, backend: str) -> Tensor:
        """The operator."""
        return ops.occlude(
            self.images, 0, self.count, patch=self.patch, mean=MEAN, std=STD, dtype=self.dtype,
            channels_last=self.layout == torch.channels_last, backend=backend,
        )  # fmt: skip

    def candidates(self, compiled: bool) -> dict[str, Callable[[], Tensor]]:
        """What is timed, by name."""
        source = self.out[:: self.count].clone(memory_format=self.layout)
        spread = self.out.unflatten(0, (-1, self.count))
        found: dict[str, Callable[[], Tensor]] = {
            "copy": lambda: spread.copy_(source[:, None]),
            "loop": self.loop,
            "masked": self.masked,
        }
        if compiled:
            torch._dynamo.reset()
            fast = torch.compile(self.masked, dynamic=False)
            found["compile"] = fast
        for name, backend in (("native", native), ("triton", triton)):
            if backend.supports(self.images) and not (name == "triton" and triton.interpreted()):
                found[name] = lambda name=name: self.kernel(name)
                found[f"{name} into"] = lambda backend=backend: self.into(backend)
        return found


def measure(case: Case, quick: bool) -> list[dict[str, Any]]:
    """Rows of one case."""
    timed = case.candidates(compiled=not quick)
    expected = case.kernel("reference").float()
    worst = {name: float((run().float() - expected).abs().max()) for name, run in timed.items() if name != "copy"}
    written = case.out.numel() * case.out.element_size()
    times = interleaved(timed, rounds=5 if quick else max(7, min(50, int(1e9 / written))))
    copy = times["copy"].median
    return [
        {
            "shape": [*case.images.shape], "windows": case.count,
            "dtype": str(case.dtype).removeprefix("torch."),
            "layout": "last" if case.layout == torch.channels_last else "first",
            "name": name, "ms": 1e3 * time.median, "spread": time.spread,
            "times_loop": times["loop"].median / time.median, "GB/s": written / time.median / 1e9,
            "share_of_copy": copy / time.median, "deviation": worst.get(name),
        }
        for name, time in times.items()
    ]  # fmt: skip


def line(row: dict[str, Any]) -> str:
    """One row as text."""
    shape = "×".join(map(str, row["shape"]))
    deviation = "" if row["deviation"] is None else f"off by {row['deviation']:.0e}"
    return (
        f"{shape:>13} ×{row['windows']:>4} {row['dtype']:>8} {row['layout']:>5} {row['name']:>11} "
        f"{row['ms']:9.3f} ms ±{row['spread']:4.0%} {row['times_loop']:6.1f}× loop "
        f"{row['GB/s']:7.1f} GB/s {row['share_of_copy']:5.0%} of copy  {deviation}"
    )


def main() -> None:
    """Measure, print and write."""
    args = parser_of(__doc__).parse_args()
    rows = begin("occlude", args, line)
    for shape, patch, count in CASES:
        for dtype in (torch.float32, torch.bfloat16):
            for last in (False, True):
                case = Case(shape, patch, count, dtype, last, args.device)
                rows.add(measure(case, args.quick))


if __name__ == "__main__":
    main()
