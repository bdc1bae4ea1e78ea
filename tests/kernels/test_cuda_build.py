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
        "assert 'torch' not in sys.modules\n"  # it needs none
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


Code = list[tuple[int, str]]  # addresses and instructions, without the padding


def listing(arch: str) -> dict[str, Code]:
    """The machine code of every kernel for one architecture, by mangled name."""
    path = str(importlib.import_module("sdsgsm_fast._native_cuda").__file__)
    triton = pytest.importorskip("triton")
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    command = [tool, "-sass", "-arch", f"sm_{arch}", path]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    line = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", re.MULTILINE)
    return {
        part.split()[0]: [(int(a, 16), text) for a, text in line.findall(part) if "NOP" not in text]
        for part in output.split("Function : ")[1:]
    }


def kernel(listed: dict[str, Code], name: str) -> Code:
    (code,) = (code for key, code in listed.items() if re.search(name, key))
    return code


def loop_around(code: Code, mark: str) -> Code:
    """The shortest loop with an instruction `mark` in it."""
    found = []
    for at, text in code:
        target = re.search(r"BRA\S* (?:[!U]*P\w+, )?0x([0-9a-f]+)", text)
        if target and int(target[1], 16) < at:
            body = [x for x in code if int(target[1], 16) <= x[0] <= at]
            found += [body] if any(mark in x for _, x in body) else []
    return min(found, key=len)


def number(code: Code, pattern: str) -> int:
    return sum(bool(re.search(pattern, text)) for _, text in code)


# What was counted, and about a seventh more: instructions of a kernel, and of the loop around the
# mark, in which all alternatives count. Values: three groups of four in a thread of one_pass, two
# in step_part, four groups in reduce_part, a unit of 16 bytes in copies_of, four units in tiles_of.
COUNTS = {
    "one_passIffE": (2750, "MUFU.EX2", 850),
    "one_passIfNS_8BFloat16E": (2800, "MUFU.EX2", 850),
    "reduce_partIffE": (560, "LDG.E.128", 235),
    "step_partIfffE": (1820, "LDG.E.128", 550),
    "copies_ofIffffLi4E": (730, "STG.E.128", 74),
    "copies_ofIffNS_8BFloat16EfLi8E": (1120, "STG.E.128", 112),
    "tiles_ofI5uint4E": (400, "", 0),
    "tiles_ofIjE": (380, "", 0),
}


def test_instructions_are_few_and_accesses_wide(architectures: set[str]) -> None:
    for arch in sorted(architectures & {"80", "90", "100"}):
        listed = listing(arch)
        for name, (most, mark, most_in_loop) in COUNTS.items():
            code = kernel(listed, name)
            assert len(code) <= most, (arch, name, len(code))
            if mark:
                loop = loop_around(code, mark)
                assert len(loop) <= most_in_loop, (arch, name, len(loop))
        check_widths(listed)


def check_widths(listed: dict[str, Code]) -> None:
    """Narrow accesses are those of edges and of domains that are not aligned, and of settings."""
    one_pass = kernel(listed, "one_passIffE")
    head = one_pass[: next(i for i, (_, text) in enumerate(one_pass) if "BAR.SYNC" in text)]
    assert number(head, r"LDG\.E\.128") >= 12  # three groups of four streams before the norm is known
    step = loop_around(one_pass, "MUFU.EX2")
    assert number(step, r"STG\.E\.128") == 6  # adv and momentum of three groups
    assert number(step, r"STG\.E desc") == 0
    copies = loop_around(kernel(listed, "copies_ofIffffLi4E"), "STG.E.128")
    assert number(copies, "STG") == 1
    assert number(copies, "LDG") == 0
    tiles = kernel(listed, "tiles_ofI5uint4E")
    assert number(tiles, r"LDG\.E\.128") == number(tiles, r"STG\.E\.128") == 4


def test_it_links_no_cuda_library() -> None:
    path = importlib.import_module("sdsgsm_fast._native_cuda").__file__
    linked = subprocess.run(["readelf", "-d", str(path)], capture_output=True, text=True).stdout
    needed = re.findall(r"NEEDED.*\[(.+)\]", linked)
    assert needed
    assert not [name for name in needed if re.search("cuda|torch|c10|gomp|nv", name)]
