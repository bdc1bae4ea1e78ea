"""Import, build and installation: what breaks for the users of other extensions must not here."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import tomllib

ROOT = Path(__file__).parents[1]


def isolated(*arguments: str, site: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Python on an unpacked wheel: -S keeps an editable installation out of the way."""
    path = os.pathsep.join([str(site), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    return python("-S", "-W", "error", *arguments, cwd=cwd, PYTHONPATH=path)


def python(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    ours = ("PYTHONPATH", "SDSGSM_BUILD", "SDSGSM_CUDA_ARCHITECTURES")
    clean = {k: v for k, v in os.environ.items() if k not in ours}
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env={**clean, **env}, capture_output=True, text=True)


def build(tmp_path: Path, **env: str) -> Path:
    """Build a wheel from a copy of the tracked sources and unpack it into an empty folder."""
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    source = tmp_path / "source"
    for name in names:
        if (ROOT / name).is_file():
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    done = python(
        *("-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"),
        *("-w", str(tmp_path), str(source)),
        cwd=tmp_path, **env,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


ATTACK = """
import torch, sdsgsm_fast, sys
from sdsgsm_fast.kernels.backends import report
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 4))
x = torch.rand(6, 3, 8, 8)
y = model(x).argmax(1)
result = sdsgsm_fast.SDSGSM(model, eps=0.2)
print(int(result.run(x, y).success.sum()), sdsgsm_fast.occlusion_map(model, x, y).shape)
print(sdsgsm_fast.__file__)
print(report()["native (CPU)"])
"""


def test_import_is_silent_and_touches_no_gpu(tmp_path: Path) -> None:
    program = (
        "import sdsgsm_fast, torch, sys; assert not torch.cuda.is_initialized(); "
        "assert not {'skimage', 'matplotlib', 'typer', 'rich', 'captum'} & set(sys.modules)"
    )
    done = python("-W", "error", "-c", program, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


COPYING = """#!{python}
# Stands in for g++ and nvcc: "compiles" by copying what this tree was built with.
import shutil, sys
target = sys.argv[sys.argv.index("-o") + 1] if "-o" in sys.argv else None
if "--list-gpu-arch" in sys.argv:
    print("compute_80 compute_90 compute_100")
elif target and target.endswith(".so"):
    shutil.copy({package!r} + "/" + target.split("/")[-1], target)
elif target:
    open(target, "w").close()
"""


@pytest.fixture(scope="session")
def copying(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment whose compilers take no time; the real ones have built this tree."""
    folder = tmp_path_factory.mktemp("compilers")
    for name in ("c++", "nvcc"):
        text = COPYING.format(python=sys.executable, package=str(ROOT / "sdsgsm_fast"))
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    compiler = str(folder / "c++")
    return {"CC": compiler, "CXX": compiler, "LDSHARED": compiler, "LDCXXSHARED": compiler,
            "PATH": f"{folder}:/usr/bin:/bin"}  # fmt: skip


NO_COMPILER = {"CC": "/none/cc", "CXX": "/none/c++"}
NO_NVCC = {"PATH": "/usr/bin:/bin", "CUDA_HOME": "/none"}
MODES = {
    "auto": {},
    "no nvcc": NO_NVCC,
    "none": {"SDSGSM_BUILD": "none"},
    "no compiler": NO_COMPILER,
}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["auto", "no nvcc"])
def test_the_wheel_is_compiled_anew(tmp_path: Path, mode: str) -> None:
    """By the machine's own compilers; for one GPU architecture, for the time that it takes."""
    check_wheel(tmp_path, mode, {"SDSGSM_CUDA_ARCHITECTURES": "90", **MODES[mode]})


@pytest.mark.parametrize("mode", MODES)
def test_the_wheel_works_outside_the_tree(tmp_path: Path, mode: str, copying: dict[str, str]) -> None:
    if mode == "auto" and not list((ROOT / "sdsgsm_fast").glob("_native_cuda*.so")):
        copying = {**copying, **NO_NVCC}
    check_wheel(tmp_path, mode, {**copying, **MODES[mode]})


def check_wheel(tmp_path: Path, mode: str, environment: dict[str, str]) -> None:
    site = build(tmp_path, **environment)
    empty = tmp_path / "empty"
    empty.mkdir()
    done = isolated("-c", ATTACK, site=site, cwd=empty)
    assert done.returncode == 0, done.stderr
    success, location, native = done.stdout.splitlines()
    assert success == "6 torch.Size([6, 8, 8])"
    assert location.startswith(str(site))
    compiled = list((site / "sdsgsm_fast").glob("*.so"))
    if mode in ("auto", "no nvcc"):
        assert native.startswith("available, using ")
        built = bool(list((ROOT / "sdsgsm_fast").glob("_native_cuda*.so")))
        assert len(compiled) == 1 + (mode == "auto" and built)
    else:
        assert not compiled
        reason = "SDSGSM_BUILD=none" if mode == "none" else "no C.. compiler: ./none/c"
        assert re.match(rf"not built: .*{reason}", native)
    if mode == "no nvcc":
        outcome = json.loads((site / "sdsgsm_fast" / "_build_info.json").read_text())
        assert outcome["cuda"] == "not built: nvcc was not found on PATH or in CUDA_HOME"
    info = isolated("-m", "sdsgsm_fast", "info", site=site, cwd=empty)
    assert native.split(":")[0] in info.stdout
    packed = {p.name for p in (site / "sdsgsm_fast").iterdir()}
    assert {"py.typed", "_native_cpu.pyi", "data"} <= packed
    assert {"page.css", "page.js"} <= {p.name for p in (site / "sdsgsm_fast" / "runs" / "report").iterdir()}


def test_a_build_leaves_nothing_of_an_earlier_one(tmp_path: Path, copying: dict[str, str]) -> None:
    """A second build in the same tree has neither deleted files nor old kernels."""
    site = build(tmp_path, **copying, SDSGSM_BUILD="cpu")
    source = tmp_path / "source"
    (source / "sdsgsm_fast" / "junk.py").write_text("")
    for step, env in enumerate(({**copying, "SDSGSM_BUILD": "cpu"}, NO_COMPILER)):
        wheels = tmp_path / f"again{step}"
        done = python(
            *("-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"),
            *("-w", str(wheels), str(source)),
            cwd=tmp_path, **env,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        with zipfile.ZipFile(next(wheels.glob("*.whl"))) as archive:
            names = archive.namelist()
        assert ("sdsgsm_fast/junk.py" in names) == (step == 0)
        assert any("_native_cpu" in name and name.endswith(".so") for name in names) == (step == 0)
        (source / "sdsgsm_fast" / "junk.py").unlink(missing_ok=True)
    assert not (site / "sdsgsm_fast" / "junk.py").exists()


def test_a_forced_build_without_a_compiler_fails(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="/none/c"):
        build(tmp_path, SDSGSM_BUILD="cpu", **NO_COMPILER)


def test_an_unknown_build_mode_is_named(tmp_path: Path) -> None:
    done = python(str(ROOT / "setup.py"), "--version", cwd=tmp_path, SDSGSM_BUILD="fast")
    assert done.returncode != 0
    assert "SDSGSM_BUILD: expected auto, cpu or none, found 'fast'" in done.stderr
    done = python(str(ROOT / "setup.py"), "--version", cwd=tmp_path, SDSGSM_CUDA_ARCHITECTURES="90 hopper")
    assert done.returncode != 0
    assert "SDSGSM_CUDA_ARCHITECTURES: expected numbers such as 90" in done.stderr


def test_the_python_of_the_readme_runs(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    program = f"""
import torch
from torch import nn
model = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(392, 5))
images = torch.rand(4, 3, 16, 16)
labels = model(images).argmax(1)
{example}
assert result.adv.shape == images.shape and heat.shape == (4, 16, 16)
"""
    done = python("-W", "error", "-c", program, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("AttackResult(4 images: ")


def test_the_core_needs_only_torch_and_numpy(tmp_path: Path) -> None:
    """Without the extras the library works and says what a feature needs."""
    blocked = ["skimage", "matplotlib", "typer", "rich", "safetensors", "captum", "scipy", "PIL"]
    program = f"""
import sys, runpy
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {blocked}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
{ATTACK}
from sdsgsm_fast.data.photos import photo_crops
from sdsgsm_fast.data.photonet import load_photonet
for needs_extra in (lambda: photo_crops("test", 1), load_photonet):
    try:
        needs_extra()
    except ModuleNotFoundError as error:
        assert "pip install 'sdsgsm-fast[cli]'" in str(error), error
    else:
        raise AssertionError("nothing was missing")
runpy.run_module("sdsgsm_fast", run_name="__main__")
"""
    done = python("-c", program, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == 1
    assert "sdsgsm: the package 'typer' is missing: pip install 'sdsgsm-fast[cli]'" in done.stderr
    assert done.stdout.startswith("6 torch.Size([6, 8, 8])")


def test_the_build_asks_for_no_torch() -> None:
    """An isolated build must neither fetch a second torch nor compile against it."""
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert sorted(re.match(r"[a-z0-9]+", name)[0] for name in needed) == ["pybind11", "setuptools"]


def test_the_extension_links_neither_torch_nor_an_openmp_runtime() -> None:
    (library,) = (ROOT / "sdsgsm_fast").glob("_native_cpu*.so")
    needed = subprocess.run(["objdump", "-p", library], capture_output=True, text=True).stdout
    libraries = re.findall(r"NEEDED\s+(\S+)", needed)
    assert libraries
    assert not [name for name in libraries if re.search("torch|c10|gomp|omp", name)]
