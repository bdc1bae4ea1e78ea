"""The command line, as a user types it."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sdsgsm_fast.cli.main import COMMANDS, main
from sdsgsm_fast.common.files import write_bytes, write_json
from sdsgsm_fast.kernels import native


def sdsgsm(*arguments: str, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "sdsgsm_fast", *arguments],
        cwd=cwd, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done


def test_info_names_the_backends(tmp_path: Path) -> None:
    out = sdsgsm("info", cwd=tmp_path).stdout
    assert "backend reference" in out
    assert re.search(r"backend native \(CPU\) +available, using", out)
    cuda = native.why_missing("cuda") or "available"
    assert re.search(rf"backend native \(CUDA\) +{re.escape(cuda[:30])}", out)
    assert "torch" in out


def test_help_and_version(tmp_path: Path) -> None:
    assert "demo" in sdsgsm("--help", cwd=tmp_path).stdout
    text = sdsgsm("demo", "--help", cwd=tmp_path).stdout
    for option in ("--out", "--per-class", "--eps", "--steps", "--backend", "--device"):
        assert option in text
    assert sdsgsm("--version", cwd=tmp_path).stdout.startswith("sdsgsm-fast ")


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_demo_writes_table_and_figure(tmp_path: Path, backend: str) -> None:
    done = sdsgsm(
        "demo", "--per-class", "2", "--steps", "3", "--out", "here/it", "--backend", backend,
        cwd=tmp_path,
    )  # fmt: skip
    assert "SD-SGSM, relax=None" in done.stdout
    table = json.loads((tmp_path / "here/it/table.json").read_text())
    names = [row["attack"] for row in table["rows"]]
    assert names == [
        "FGSM", "BIM, all steps", "PGD, all steps", "MI-FGSM, all steps", "BIM, early stop",
        "SD-SGSM, spatial only", "SD-SGSM, smoothing only", "SD-SGSM, relax=None", "SD-SGSM",
    ]  # fmt: skip
    for row in table["rows"]:
        assert row["images"] == 20
        assert row["seconds"] > 0
        assert 0 <= row["success_rate"] <= 1
        assert row["linf"] <= 8 / 255 + 1e-6
        assert row["updates"] <= 3
    by_name = dict(zip(names, table["rows"], strict=True))
    assert by_name["BIM, all steps"]["updates"] == 3
    assert by_name["FGSM"]["updates"] == 1
    assert by_name["SD-SGSM"]["forwards"] > 64
    assert table["machine"]["torch"]
    assert (tmp_path / "here/it/table.md").read_text().count("\n") == 11
    assert (tmp_path / "here/it/figure.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--backend", "cuda"], "is not one of auto, reference, native, triton"),
        (["demo", "--per-class", "0"], "--per-class"),
        (["demo", "--device", "nowhere"], "nowhere"),
        (["demo", "--out", "/proc/none"], "cannot write to the folder"),
        (["explode"], "No such command"),
        (["attack"], "Missing option '--out'"),
    ],
)
def test_bad_input_is_one_message_and_exit_2(
    tmp_path: Path,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["sdsgsm", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1
    assert message in errors[0]
    assert not list(tmp_path.iterdir())


def test_a_backend_that_cannot_run_is_one_message_and_exit_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # Triton runs on a CPU with it
    done = sdsgsm("demo", "--backend", "triton", cwd=tmp_path, code=2)
    assert "backend: 'triton'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_demo_that_fools_nothing_still_has_its_table_and_figure(tmp_path: Path) -> None:
    """In a narrow terminal and without Unicode no figure is cut."""
    done = subprocess.run(
        [sys.executable, "-m", "sdsgsm_fast", "demo", "--per-class", "1", "--steps", "1",
         "--eps", "0.1"],
        cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "COLUMNS": "60", "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    written = {path.name for path in (tmp_path / "sdsgsm-demo").iterdir()}
    assert written == {"table.json", "table.md", "figure.png"}
    rows = [line for line in done.stdout.splitlines() if line.startswith("SD-SGSM, smoothing only ")]
    assert re.fullmatch(r"SD-SGSM, smoothing only( +[\d.]+%?){7}", rows[-1])
    assert max(map(len, rows)) <= 80


def test_files_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a" / "table.json"
    write_json(path, {"rate": float("nan"), "rows": [{"x": 1.5}, {"y": float("inf")}]})
    assert json.loads(path.read_text()) == {"rate": None, "rows": [{"x": 1.5}, {"y": None}]}
    with pytest.raises(TypeError):
        write_bytes(path, "no bytes")  # type: ignore[arg-type]
    assert json.loads(path.read_text())["rate"] is None
    assert [p.name for p in path.parent.iterdir()] == ["table.json"]


def test_help_is_there_at_once_and_says_what_the_commands_say() -> None:
    program = (
        "import sys\n"
        "from sdsgsm_fast.cli.main import main\n"
        "sys.argv = ['sdsgsm', '--help']\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert time.perf_counter() - start < 2  # 0.2 s on a machine that does nothing else
    for name, text in COMMANDS.items():
        assert name in done.stdout
        command = getattr(importlib.import_module(f"sdsgsm_fast.cli.{name}_command"), name)
        assert (command.__doc__ or "").splitlines()[0] == text


def test_every_public_name_is_there() -> None:
    import sdsgsm_fast

    for name in sdsgsm_fast.__all__:
        assert getattr(sdsgsm_fast, name) is not None
    assert set(sdsgsm_fast.__all__) <= set(dir(sdsgsm_fast))
    assert sdsgsm_fast.__version__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = sdsgsm_fast.nothing
