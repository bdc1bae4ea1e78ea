"""Put the logs and figures of bench/gpu.sh into one JSON.

python bench/gather.py FOLDER FILE
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from sdsgsm_fast.cli.report import write_json
from sdsgsm_fast.common.machine import machine

ROOT = Path(__file__).parents[1]


def steps(folder: Path) -> dict[str, Any]:
    """Outcome, seconds and the last lines of every step."""
    found = {}
    for line in (folder / "steps").read_text().splitlines():
        name, code, start, end = line.split()
        log = folder / f"{name}.log"
        last = log.read_text().splitlines()[-12:] if log.is_file() else []
        seconds = float(end) - float(start)
        found[name] = {"exit": int(code), "seconds": round(seconds, 1), "log": last}
    return found


def registers(folder: Path) -> dict[str, int]:
    """Kernels and the most registers and spilled bytes among them, from nvcc's report."""
    log = folder / "source" / "sdsgsm_fast" / "_nvcc.log"
    text = log.read_text() if log.is_file() else ""
    used = [int(n) for n in re.findall(r"Used (\d+) registers", text)]
    spilled = [int(n) for n in re.findall(r"(\d+) bytes spill stores", text)]
    return {"kernels": len(used), "most": max(used, default=0), "spilled": max(spilled, default=0)}


def commit() -> str:
    """The commit that was measured, with a mark where the tree differs from it; or $COMMIT."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    return os.environ.get("COMMIT") or said(command, ROOT) or "unknown"


def said(command: list[str], folder: Path) -> str:
    """First line of a command's output; empty where there is no such command."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.partition("\n")[0].strip()


def driver() -> str:
    """Driver of the first GPU."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return said(query, ROOT) or "unknown"


def versions() -> dict[str, str]:
    """Triton, and the CUDA that torch was built for."""
    try:
        import triton

        return {"triton": triton.__version__, "cuda": str(torch.version.cuda)}
    except ImportError:
        return {"triton": "none", "cuda": str(torch.version.cuda)}


def figures(path: Path) -> list[Any]:
    """Rows of a benchmark; none if it did not finish."""
    return list(json.loads(path.read_text())["rows"]) if path.is_file() else []


def main() -> None:
    """Write the file and say how the steps ended."""
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    outcome = steps(folder)
    found = {
        "machine": {**machine(), **versions(), "driver": driver()},
        "commit": commit(),
        "steps": outcome,
        "nvcc": registers(folder),
        "update": figures(folder / "update.json"),
        "occlude": figures(folder / "occlude.json"),
        "occlusion": figures(folder / "occlusion.json"),
        "attack": figures(folder / "attack.json"),
    }
    write_json(out, found)
    for name, step in outcome.items():
        print(f"{name}: " + ("ok" if step["exit"] == 0 else f"exit {step['exit']}"))
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
