"""The benchmarks of this folder: list them, run one, compare two results."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

HERE = Path(__file__).parent

USAGE = """The benchmarks: list them, run one, compare two results.

    python -m bench                      what there is
    python -m bench NAME [--quick] …     run one; --help tells its options
    python -m bench compare OLD NEW      two result files row by row

On two cores they take, whole and with --quick:
"""

BENCHMARKS = {
    "update": ("the update beside PyTorch, torch.compile and the memory's bandwidth", "2 min", "1 min"),
    "occlude": ("zeroed-out copies beside PyTorch and the memory's bandwidth", "4 min", "1 min"),
    "occlusion": ("occlusion maps of whole networks beside a plain loop and Captum", "40 min", "6 min"),
    "attack": ("whole attacks beside torchattacks, foolbox and adv-lib", "25 min", "5 min"),
    "runs": ("a data-set run: its overhead, two ranks, memory, PGD for comparison", "10 min", "2 min"),
    "soak": ("kills, damaged files, odd input and threads, for as long as asked", "10 min", "1 min"),
    "tanh": ("accuracy of the C++ kernels' tanh over all floats", "2 min", "10 s"),
}
"""What each measures, and how long it takes on two cores, whole and with --quick."""


def listing() -> str:
    """What there is, as text."""
    lines = [f"  {name:10} {whole:>7} {quick:>6}  {what}" for name, (what, whole, quick) in BENCHMARKS.items()]
    gpu = "\nOn a GPU: bench/gpu/run.sh. The paper's experiment on CIFAR-10: bench/cifar10.sh."
    return "\n".join([USAGE, *lines, gpu])


def main() -> None:
    """Run what the first word names."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(listing())
        return
    if name not in (*BENCHMARKS, "compare"):
        raise SystemExit(f"bench: expected one of {', '.join([*BENCHMARKS, 'compare'])}, found {name}")
    sys.path.insert(0, str(HERE))  # the benchmarks import each other as scripts do
    sys.argv[:2] = [f"python -m bench {name}"]
    importlib.import_module(name).main()


if __name__ == "__main__":
    main()
