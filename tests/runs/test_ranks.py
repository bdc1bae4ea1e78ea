"""Runs by several processes: torchrun on one machine, ranks that die, and what is the same all the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sdsgsm_fast import runs

OPTIONS = ("attack", "--limit", "48", "--shard-size", "4", "--steps", "3", "--domain", "none", "--out")


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.name != ".lock"}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The set as one process makes it."""
    folder = tmp_path_factory.mktemp("one")
    alone(folder)
    return contents(folder)


def alone(out: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "sdsgsm_fast", *OPTIONS, str(out)], env=environment, check=True)


def torchrun(out: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, "-m", "sdsgsm_fast", *OPTIONS, str(out)], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def rank_of(process: int) -> str | None:
    try:
        listed = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    return next((entry[5:].decode() for entry in listed if entry.startswith(b"RANK=")), None)


def worker(launcher: int, rank: str) -> int | None:
    """Id of a rank's process."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        if parent == launcher and rank_of(int(path.name)) == rank:
            return int(path.name)
    return None


def until_some_are_made(out: Path, count: int) -> None:
    end = time.monotonic() + 120
    while len(list(out.glob("adv-*.sha256"))) < count:
        assert time.monotonic() < end
        time.sleep(0.02)


def test_two_ranks_make_what_one_process_makes(expected: dict[str, bytes], tmp_path: Path) -> None:
    process = torchrun(tmp_path / "two")
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert contents(tmp_path / "two") == expected
    assert said.count("48/48 images") == 1, "one rank speaks"
    assert runs.verify(tmp_path / "two").sound


def test_a_rank_that_dies_is_started_again_and_a_killed_run_resumed(expected: dict[str, bytes], tmp_path: Path) -> None:
    process = torchrun(tmp_path / "two", "--max-restarts", "2")
    until_some_are_made(tmp_path / "two", 2)
    victim = worker(process.pid, "1")
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert contents(tmp_path / "two") == expected

    process = torchrun(tmp_path / "killed")
    until_some_are_made(tmp_path / "killed", 2)
    workers = [worker(process.pid, rank) for rank in ("0", "1")]
    for victim in (process.pid, *workers):
        if victim is not None:
            os.kill(victim, signal.SIGKILL)
    process.communicate(timeout=60)
    assert not runs.verify(tmp_path / "killed").sound
    alone(tmp_path / "killed")
    assert contents(tmp_path / "killed") == expected
