"""Runs that are killed at random moments, end on a full disk or in a worker process: the set is the same in the end."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = """
# A process that has imported everything forks runs, since twenty starts of an interpreter take a minute.
import os, random, shutil, signal, socket, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from sdsgsm_fast import SDSGSM, images, models, runs

top, world = Path(sys.argv[1]), int(sys.argv[2])
loaded, data = models.load("photos"), images.load("photos")
attack = SDSGSM(loaded.model, mean=loaded.mean, std=loaded.std, steps=3, levels=256, domain=None)
draw = random.Random(world)
attack.run(*data.rows(range(4)))  # what is worked out about the model is there when a run begins

def port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])

def started(out):
    where, children = port(), []
    for rank in range(world):
        child = os.fork()
        if not child:
            if world > 1:
                os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": where}
            try:
                runs.attack_dataset(attack, data, out, shard_size=2, limit=16, png=True)
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    return children

def ended(children):
    return all(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0 for child in children)

def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}

begun = time.monotonic()
assert ended(started(top / "whole"))
taken, whole, kills, sets = time.monotonic() - begun, contents(top / "whole"), 0, 0
assert len(whole) == 16 + 8 + 4
while kills < 20 or sets < 2:
    if kills >= 20:
        assert ended(started(top / "killed"))
    else:
        children = started(top / "killed")
        time.sleep(taken * draw.uniform(0, 0.6))
        first = draw.randrange(world)
        for place in (first, *(k for k in range(world) if k != first)):
            os.kill(children[place], signal.SIGKILL)
            time.sleep(0.1 * draw.random() * (world > 1))
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        kills += -signal.SIGKILL in codes
    if (top / "killed" / "SHA256SUMS").exists():
        # The very last file: the set must be whole, but for notes that are of no more use.
        found = {k: v for k, v in contents(top / "killed").items() if not k.endswith(".sha256") and not k.endswith(".tmp")}
        assert found == whole, sorted(set(found) ^ set(whole))
        assert runs.verify(top / "killed").sound
        shutil.rmtree(top / "killed")
        sets += 1
print(kills, "kills", sets, "sets")
"""


@pytest.mark.parametrize("world", [1, 2])
def test_killed_twenty_times_the_set_is_the_same(world: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLS, str(tmp_path), str(world)], capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("20 kills")


FULL = """
import subprocess, sys
from pathlib import Path
top = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=250k", "none", top], check=True)
from sdsgsm_fast import BIM, images, models, runs
from sdsgsm_fast.model.classifier import Classifier
loaded, data = models.load("photos"), images.load("photos")
known = {"mean": loaded.mean, "std": loaded.std}
attack = BIM(loaded.model, steps=2, **known)
def run(out):
    runs.attack_dataset(attack, data, out, limit=24, shard_size=3)
try:
    run(top / "set")
    sys.exit("it fits")
except OSError as error:
    print(error)
assert not list((top / "set").glob(".*.tmp"))
assert list((top / "set").glob("adv-*.safetensors")), "what was finished stays"
assert not runs.verify(top / "set").sound
subprocess.run(["mount", "-o", "remount,size=8m", top], check=True)
run(top / "set")
run(top / "whole")
for path in (top / "whole").iterdir():
    assert path.read_bytes() == (top / "set" / path.name).read_bytes(), path
print(runs.verify(top / "set", classifier=Classifier(loaded.model, **known), data=data))
"""


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    """A small file system, mounted where nobody else sees it."""
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-rm", "true"], capture_output=True).returncode:
        pytest.skip("needs to mount a file system")
    command = [unshare, "-rm", sys.executable, "-c", FULL, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout.splitlines()
    assert said[0].startswith("[Errno 28] No space left on device")
    assert said[1].startswith("Report(problems=[], ")


def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-rm", "true"], capture_output=True).returncode:
        pytest.skip("needs to mount a file system")
    script = 'mount -t tmpfs -o ro none "$1"; "$0" -m sdsgsm_fast attack --out "$1" --limit 2'
    done = subprocess.run(
        [unshare, "-rm", "bash", "-c", script, sys.executable, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("sdsgsm: [Errno 30] Read-only file system")
    assert len(done.stderr.splitlines()) == 1


WORKERS = """
import multiprocessing, sys, warnings
warnings.simplefilter("error")
import torch
from sdsgsm_fast import SDSGSM, images, models, occlusion_map

def work(place):
    loaded, data = models.load("photos"), images.load("photos")
    pixels, labels = data.rows(range(8))
    adv = SDSGSM(loaded.model, mean=loaded.mean, std=loaded.std, steps=3)(pixels, labels)
    return adv, occlusion_map(loaded.model, pixels, labels, mean=loaded.mean, std=loaded.std)

if __name__ == "__main__":
    expected = work(0)  # the parent has used its threads before it forks
    # PyTorch's OpenMP hangs in a forked worker that uses more than one thread; its DataLoader does the same.
    one = {"initializer": torch.set_num_threads, "initargs": (1,)} if sys.argv[1] == "fork" else {}
    with multiprocessing.get_context(sys.argv[1]).Pool(2, **one) as pool:
        for found in pool.map_async(work, range(2)).get(120):
            for a, b in zip(found, expected):
                torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    print("same")
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_processes(method: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(WORKERS)
    done = subprocess.run([sys.executable, program, method], capture_output=True, text=True, timeout=200)
    assert done.stdout == "same\n", done.stderr
