"""The benchmarks of bench/gpu run, in tiny sizes and without a GPU, and their results come together."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GPU = ROOT / "bench" / "gpu"


def ran(*command: object) -> str:
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_kernels_programs_and_what_gathers_them(tmp_path: Path) -> None:
    ran(GPU / "kernels.py", "--small", "--json", tmp_path / "kernels.json")
    ran(GPU / "programs.py", "--small", "--seconds", 4, "--json", tmp_path / "programs.json")
    (tmp_path / "kernels.steps").write_text("kernels 0 1.0 3.5\ntests 1 3.5 4.0\n")
    (tmp_path / "tests.log").write_text("1 failed\n")
    (tmp_path / "profile.log").write_text(
        '==PROF== Connected\n"ID","Kernel Name","Grid Size","Metric Name","Metric Unit","Metric Value"\n'
        '"0","copies","(4, 1, 1)","Registers Per Thread","register/thread","40"\n'
        '"0","copies","(4, 1, 1)","Something Else","","7"\n'
    )
    said = ran(GPU / "gather.py", tmp_path, tmp_path / "gpu.json")
    assert "tests: exit 1" in said
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["steps"]["kernels"] == {"exit": 0, "seconds": 2.5, "log": []}
    assert found["steps"]["tests"]["log"] == ["1 failed"]
    assert found["profiles"] == [
        {"kernel": "copies", "grid": "(4, 1, 1)", "Registers Per Thread": "40 register/thread"}
    ]
    kernels, programs = found["kernels"], found["programs"]
    assert kernels["errors"] == programs["errors"] == []
    assert {row["kernel"] for row in kernels["rows"]} == {"update", "occlude", "paste", "window_mean"}
    assert all(row["deviation"] < 1e-2 for row in kernels["rows"] if row["dtype"] == "bfloat16")
    assert all(row["deviation"] < 2e-6 for row in kernels["rows"] if row["dtype"] == "float32")
    assert programs["rows"]

    assert all(row["seconds"] > 0 and 0 <= row.get("success", 0) <= 1 for row in programs["rows"])


def test_the_script_says_what_it_takes() -> None:
    done = subprocess.run(["sh", GPU / "run.sh", "everything"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "run.sh kernels OUT" in done.stderr
