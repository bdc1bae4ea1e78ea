"""The benchmarks list themselves, say what they run on, and compare; those of bench/gpu run in tiny sizes without a GPU."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from argparse import Namespace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from sdsgsm_fast import _native_cpu
from sdsgsm_fast.common.machine import machine

ROOT = Path(__file__).parents[1]
GPU = ROOT / "bench" / "gpu"


MODULES = ("nets", "timing", "compare")  # of bench/ that are no benchmarks


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the modules of bench/ importable, as `python -m bench` does."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_every_benchmark_is_listed() -> None:
    listed = ran("-m", "bench")
    for path in (ROOT / "bench").glob("[a-z]*.py"):
        assert (f"\n  {path.stem} " in listed) != (path.stem in MODULES), path
    unknown = subprocess.run([sys.executable, "-m", "bench", "speed"], capture_output=True, text=True, cwd=ROOT)
    assert unknown.returncode == 1
    assert "expected one of update, occlude" in unknown.stderr


@pytest.mark.usefixtures("scripts")
def test_a_result_names_its_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    timing = importlib.import_module("timing")
    monkeypatch.setattr(timing, "RESULTS", tmp_path)
    monkeypatch.setattr(timing, "machine", lambda: machine() | {"cpu": "AMD EPYC(tm) 9B45 Processor"})
    monkeypatch.setattr(timing, "_cpu_model", lambda: "25 17")
    monkeypatch.setattr(_native_cpu, "isa", lambda: "avx2")
    given = Namespace(device="cpu", quick=True, json=None)
    timing.begin("update", given, str, ("torch", "no-such-rival"), part="vit").add([{"name": "a", "ms": 1.0}])
    said = capsys.readouterr().out
    assert "no-such-rival: missing" in said
    assert f"torch: {metadata.version('torch')}" in said
    assert "AMD EPYC(tm) 9B45" in said
    found = json.loads((tmp_path / "update-vit-amd-epyc-9b45-processor-25-17-avx2-quick.json").read_text())
    assert found["machine"]["isa"] == "avx2"
    assert found["rivals"]["no-such-rival"] is None
    assert found["rows"] == [{"name": "a", "ms": 1.0}]


@pytest.mark.usefixtures("scripts")
def test_two_results_are_compared(tmp_path: Path) -> None:
    compare = importlib.import_module("compare")
    rows = [
        {"shape": [2, 3], "name": "native", "ms": 4.0, "spread": 0.1, "deviation": 1e-7},
        {"shape": [2, 3], "name": "eager", "ms": 4.0, "spread": 0.1, "deviation": 0.0},
        {"shape": [2, 3], "name": "gone", "ms": 1.0},
        {"shape": [2, 3], "name": "untimed", "ms": None},
    ]
    other = [rows[0] | {"ms": 2.0}, rows[1] | {"ms": 4.4, "deviation": 1e-3}, rows[2] | {"name": "fresh"}]
    old, new = ({"benchmark": "update", "machine": {"cpu": "x"}, "rows": found} for found in (rows, other))
    assert compare.lines_of(old, new) == [
        " old: x", " new: x",
        "  2.00×   2×3 native",
        "  0.91× ≈ 2×3 eager  OFF BY 1e-03, was 0e+00",
        "only old:  2×3 gone", "only new:  2×3 fresh",
        "2 rows; 1.35× in the geometric mean, 0.91× to 2.00×",
    ]  # fmt: skip
    with pytest.raises(SystemExit, match="update and occlude"):
        compare.lines_of(old, new | {"benchmark": "occlude"})
    fast = {"rows": [{"name": "a", "ms": 1.0}], "benchmark": "update", "quick": True}
    assert compare.lines_of(fast, fast)[:3] == [" old: quick", " new: quick", "  1.00× ? a"]
    assert compare.lines_of(fast, fast | {"rows": []})[-1] == "no rows with times in common"
    (tmp_path / "broken.json").write_text("[]")
    with pytest.raises(SystemExit, match="expected a result of a benchmark"):
        compare.read(tmp_path / "broken.json")


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
