"""The CUDA module where nvcc is found: compiled cleanly, loaded without a driver."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sdsgsm_fast.kernels import native

ROOT = Path(__file__).parents[2]
MOST_REGISTERS = 128

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc was not found")


@pytest.fixture(scope="module")
def log() -> str:
    """What nvcc said when this tree was built."""
    return (ROOT / "sdsgsm_fast" / "_nvcc.log").read_text()


@pytest.fixture(scope="module")
def architectures() -> set[str]:
    """Those that it was built for: all, unless the builder asked for fewer."""
    info = json.loads((ROOT / "sdsgsm_fast" / "_build_info.json").read_text())
    return set(info["cuda_architectures"].split())


def test_it_is_built_and_of_this_version() -> None:
    module, reason = native._load("cuda")
    assert module is not None, reason


def test_it_compiles_without_warnings_or_spills_for_every_architecture(log: str, architectures: set[str]) -> None:
    assert "warning" not in log
    kernels = re.findall(r"Compiling entry function '(\w+)' for 'sm_(\d+)'", log)
    assert {arch for _, arch in kernels} == architectures
    assert len(kernels) > 40 * len(architectures)
    stacks = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+)", log)
    assert len(stacks) == len(kernels)
    assert set(stacks) == {("0", "0", "0")}
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", log)]
    assert len(registers) == len(kernels)
    assert max(registers) <= MOST_REGISTERS


def test_it_loads_without_a_driver_and_reports_the_lack_of_one() -> None:
    program = (
        "import sdsgsm_fast._native_cuda as m, sys\n"
        "assert 'torch' in sys.modules\n"  # by way of the package
        "import torch\n"
        "try: m.update_scratch(1, 3072, 0, 0)\n"
        "except RuntimeError as error: assert 'CUDA: ' in str(error), error\n"
        "else: assert torch.cuda.is_available()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_it_carries_code_for_today_and_ptx_for_newer_gpus(architectures: set[str]) -> None:
    path = str(importlib.import_module("sdsgsm_fast._native_cuda").__file__)
    triton = pytest.importorskip("triton")
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"

    def listed(*options: str) -> str:
        return subprocess.run([tool, *options, path], capture_output=True, text=True).stdout

    assert set(re.findall(r"sm_(\d+)", listed("-lelf"))) == architectures
    assert set(re.findall(r"sm_(\d+)", listed("-lptx"))) == {max(architectures, key=int)}
    assembly = listed("-sass", "-arch", f"sm_{max(architectures, key=int)}")
    assert "LDG.E.128" in assembly
    assert "STG.E.128" in assembly


def test_it_links_no_cuda_library() -> None:
    path = importlib.import_module("sdsgsm_fast._native_cuda").__file__
    linked = subprocess.run(["readelf", "-d", str(path)], capture_output=True, text=True).stdout
    needed = re.findall(r"NEEDED.*\[(.+)\]", linked)
    assert needed
    assert not [name for name in needed if re.search("cuda|torch|c10|gomp|nv", name)]
