"""Looks for what goes wrong only now and then: kills, damaged files, threads and odd input, for as long as asked.

    python -m bench soak [--quick] [--minutes M] [--seed N] [--json FILE]

- kills: `sdsgsm attack`, alone and as two ranks of torchrun, killed at random moments and started again until the
  set is there; it must be the same to the byte as that of a run that nobody killed, and `runs.verify` pass.
- bytes: one byte of a set changed; `runs.verify` must find it, and the same command make the set what it was.
- fuzz: tests/fuzz with other random input than `make test` has, which repeats its own.
- threads: eight threads that attack one model object; each must find what it finds alone.
- memory: a run over 20,000 images, and how much the process grew in the last three quarters of it.

The checks take turns until the time is over. The first thing that is wrong ends it, with what it was.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from runs import memory
from timing import Rows, begin, parser_of

from sdsgsm_fast import SDSGSM, images, models, runs
from sdsgsm_fast.model.classifier import Classifier

ROOT = Path(__file__).parents[1]
ATTACK = [
    "-m",
    "sdsgsm_fast",
    "attack",
    "--limit",
    "96",
    "--shard-size",
    "8",
    "--steps",
    "3",
    "--domain",
    "none",
    "--png",
    "--quiet",
]
RANKS = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
THREADS = 8
EXAMPLES = 400  # of a fuzz test, each time


class WrongError(Exception):
    """Something is not as it must be."""


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a set."""
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != ".lock")
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def killed(process: subprocess.Popen[bytes], draw: random.Random) -> None:
    """Kill a process and all that it has started, in any order."""
    found = [process.pid]
    for parent in found:
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                if int(path.read_text().rpartition(")")[2].split()[1]) == parent:
                    found.append(int(path.parent.name))
            except (OSError, ValueError):
                continue
    draw.shuffle(found)
    for victim in found:
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
        time.sleep(draw.choice((0, 0.05)))
    process.wait()


class Soak:
    """What the checks share.

    Parameters
    ----------
    top
        A folder for sets.
    draw
        Random numbers.
    """

    def __init__(self, top: Path, draw: random.Random) -> None:
        self.top, self.draw, self.counts = top, draw, Counter[str]()
        started = time.monotonic()
        if self.start([], top / "whole").wait():
            raise WrongError("a run that nobody killed failed")
        self.seconds = time.monotonic() - started
        self.whole = contents(top / "whole")

    def start(self, launcher: list[str], out: Path) -> subprocess.Popen[bytes]:
        """Start the attack."""
        command = [sys.executable, *launcher, *ATTACK, "--out", str(out)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        quiet = subprocess.DEVNULL
        return subprocess.Popen(command, env=environment, stdout=quiet, stderr=quiet)

    def kills(self, name: str, launcher: list[str]) -> None:
        """Kill runs into one folder until the set is complete, and compare."""
        out = self.top / "killed"
        for _ in range(50):
            process = self.start(launcher, out)
            try:
                process.wait(timeout=self.seconds * self.draw.uniform(0.5, 1.0 if launcher == [] else 1.5))
            except subprocess.TimeoutExpired:
                killed(process, self.draw)
                self.counts[f"{name}: kills"] += 1
            if (out / "SHA256SUMS").exists():
                break
        if self.start([], out).wait():
            raise WrongError("a killed run could not be continued")
        self.compare(out)
        self.counts[f"{name}: sets compared"] += 1
        shutil.rmtree(out)

    def compare(self, out: Path) -> None:
        """Compare a set, to the byte, with the one that nobody killed."""
        found = contents(out)
        other = sorted(name for name in {*found, *self.whole} if found.get(name) != self.whole.get(name))
        if other:
            raise WrongError(f"a set differs in {', '.join(other)}")
        if problems := runs.verify(out).problems:
            raise WrongError(f"verify: {problems}")

    def bytes_(self) -> None:
        """Change single bytes; a few times have the set mended, too."""
        out = self.top / "whole"
        names = sorted(self.whole)
        for k in range(200):
            name = self.draw.choice(names)
            content = bytearray(self.whole[name])
            content[self.draw.randrange(len(content))] ^= self.draw.randrange(1, 256)
            (out / name).write_bytes(bytes(content))
            if runs.verify(out).sound:
                raise WrongError(f"verify overlooked a byte of {name}")
            self.counts["bytes changed and found"] += 1
            if k == 0 and name != "manifest.json":
                if self.start([], out).wait():
                    raise WrongError(f"a set with a byte of {name} changed could not be mended")
                self.compare(out)
                self.counts["sets mended"] += 1
            (out / name).write_bytes(self.whole[name])

    def fuzz(self) -> None:
        """The tests of odd input, with input that they have not had."""
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(ROOT / "tests" / "fuzz")]
        command += ["-c", str(ROOT / "pyproject.toml"), f"--hypothesis-seed={self.draw.randrange(2**32)}"]
        environment = {**os.environ, "FUZZ_EXAMPLES": str(EXAMPLES)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise WrongError(done.stdout[-3000:])
        self.counts["fuzz: inputs"] += EXAMPLES * done.stdout.count(".")

    def threads(self) -> None:
        """Threads with one model."""
        loaded, data = models.load("photos"), images.load("photos")
        known: dict[str, Any] = {"mean": loaded.mean, "std": loaded.std, "steps": 3}

        def work(part: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
            return SDSGSM(loaded.model, **known)(*part)

        places = self.draw.sample(range(len(data)), 8 * THREADS)
        parts = [data.rows(places[k::THREADS]) for k in range(THREADS)]
        alone = [work(part) for part in parts]
        with ThreadPoolExecutor(THREADS) as pool:
            for found, expected in zip(pool.map(work, parts), alone, strict=True):
                if not torch.allclose(found, expected, atol=1e-5, rtol=0):
                    raise WrongError("a thread found something else than it finds alone")
                self.counts["threads compared"] += 1

    def judged(self) -> None:
        """The set that nobody killed, judged again."""
        loaded = models.load("photos")
        classifier = Classifier(loaded.model, mean=loaded.mean, std=loaded.std)
        if problems := runs.verify(self.top / "whole", classifier=classifier, data=images.load("photos")).problems:
            raise WrongError(f"verify: {problems}")


def soak(top: Path, seconds: float, seed: int, rows: Rows) -> None:
    """Take turns until the time is over."""
    started = time.monotonic()
    checks = Soak(top, random.Random(seed))
    checks.judged()
    turns: list[tuple[str, Callable[[], None]]] = [
        ("one process", lambda: checks.kills("one process", [])),
        ("two ranks", lambda: checks.kills("two ranks", RANKS)),
        ("bytes", checks.bytes_), ("threads", checks.threads), ("fuzz", checks.fuzz),
    ]  # fmt: skip
    taken: Counter[str] = Counter()
    while time.monotonic() - started < seconds:
        # The one that has had the least time goes next.
        name, check = min(turns, key=lambda item: taken[item[0]])
        begun = time.monotonic()
        check()
        taken[name] += time.monotonic() - begun  # type: ignore[assignment]
    checks.judged()
    rows.add([{"name": name, "count": count} for name, count in sorted(checks.counts.items())])
    rows.add([{"name": "seconds, and nothing wrong", "count": round(time.monotonic() - started)}])


def line(row: dict[str, Any]) -> str:
    """One row as text."""
    if "growth_mb" in row:
        return f"{row['growth_mb']:12.1f} MB more in the last three quarters of {row['name']}"
    return f"{row['count']:12d} {row['name']}"


def main() -> None:
    """Look for as long as asked."""
    parser = parser_of(__doc__)
    parser.add_argument("--minutes", type=float, help="how long; default 10, with --quick 1")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of what is drawn; the time if not given")
    args = parser.parse_args()
    print(f"seed {args.seed}")
    minutes = args.minutes or (1.0 if args.quick else 10.0)
    rows = begin("soak", args, line, device="cpu")
    rows.add(memory(4_000 if args.quick else 20_000))
    with tempfile.TemporaryDirectory() as top:
        try:
            soak(Path(top), minutes * 60, args.seed, rows)
        except WrongError as error:
            sys.exit(f"wrong, with seed {args.seed}: {error}")


if __name__ == "__main__":
    main()
