"""Put what bench/gpu/run.sh left in its folders into one JSON.

    python bench/gpu/gather.py FOLDER [FOLDER ...] FILE

Give the folders of both parts, and that of `prepare.py` for the compiler's report. The commit is that
of this tree, or $COMMIT.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from sdsgsm_fast.common.files import write_json

ROOT = Path(__file__).parents[2]
PROFILED = (
    "Registers Per Thread", "Achieved Occupancy", "Duration", "DRAM Throughput", "Memory Throughput",
    "Compute (SM) Throughput", "L1/TEX Hit Rate", "L2 Hit Rate",
)  # fmt: skip
"""Metrics of a profile that are kept, besides the stalls."""


def steps(folder: Path) -> dict[str, Any]:
    """Outcome, seconds and the last lines of every step."""
    found = {}
    for path in sorted(folder.glob("*.steps")):
        for line in path.read_text().splitlines():
            name, code, start, end = line.split()
            log = folder / f"{name}.log"
            last = log.read_text().splitlines()[-12:] if log.is_file() and name != "profile" else []
            found[name] = {"exit": int(code), "seconds": round(float(end) - float(start), 1), "log": last}
    return found


def registers(log: Path) -> dict[str, int]:
    """Kernels and the most registers and spilled bytes among them, from nvcc's report."""
    text = log.read_text() if log.is_file() else ""
    used = [int(n) for n in re.findall(r"Used (\d+) registers", text)]
    spilled = [int(n) for n in re.findall(r"(\d+) bytes spill stores", text)]
    return {"kernels": len(used), "most": max(used, default=0), "spilled": max(spilled, default=0)}


def profiles(log: Path) -> list[dict[str, Any]]:
    """Registers, throughput and stalls of each profiled launch, from ncu's table."""
    lines = log.read_text().splitlines() if log.is_file() else []
    first = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    found: dict[str, dict[str, Any]] = {}
    for row in csv.DictReader(io.StringIO("\n".join(lines[first:]))):
        launch = found.setdefault(row["ID"], {"kernel": row["Kernel Name"], "grid": row["Grid Size"]})
        name = row["Metric Name"] or ""
        if name in PROFILED or "Stall" in name or "Warp Cycles" in name:
            launch[name] = f"{row['Metric Value']} {row['Metric Unit']}".strip()
        if row.get("Rule Description") and "stall" in row["Rule Description"].lower():
            launch.setdefault("said", row["Rule Description"])
    return list(found.values())


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


def main() -> None:
    """Write the file and say how the steps ended."""
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    folders, out = [Path(name) for name in sys.argv[1:-1]], Path(sys.argv[-1])
    found: dict[str, Any] = {"commit": commit(), "steps": {}, "nvcc": {}, "profiles": []}
    for folder in folders:
        found["steps"] |= steps(folder)
        found["profiles"] += profiles(folder / "profile.log")
        for log in (folder / "modules" / "_nvcc.log", folder / "build.log"):
            found["nvcc"] = registers(log) if log.is_file() else found["nvcc"]
        for name in ("kernels", "programs"):
            path = folder / f"{name}.json"
            if path.is_file():
                found[name] = json.loads(path.read_text())
    write_json(out, found)
    for name, step in found["steps"].items():
        print(f"{name}: " + ("ok" if step["exit"] == 0 else f"exit {step['exit']}"))
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
