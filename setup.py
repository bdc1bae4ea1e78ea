"""Build of the native kernels; everything else is in pyproject.toml.

``SDSGSM_BUILD`` chooses what is compiled:

- ``auto`` (default): whatever the machine can compile; without a compiler the package is pure
  Python, and ``sdsgsm info`` gives the reason.
- ``cpu``: the CPU kernels, or an error.
- ``none``: nothing.

In mode ``auto`` a second module is compiled from ``csrc/cuda`` where nvcc is found, for those GPU
architectures of ``SDSGSM_CUDA_ARCHITECTURES`` (default "80 90 100") that it knows: machine code for
each, and PTX of the newest for GPUs to come. A build in the tree keeps what nvcc said in
``sdsgsm_fast/_nvcc.log``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
PACKAGE = "sdsgsm_fast"
INFO = "_build_info.json"
ARCHITECTURES = os.environ.get("SDSGSM_CUDA_ARCHITECTURES", "80 90 100")

MODE = os.environ.get("SDSGSM_BUILD", "auto")
if MODE not in ("auto", "cpu", "none"):
    sys.exit(f"SDSGSM_BUILD: expected auto, cpu or none, found {MODE!r}")
if not all(architecture.isdigit() for architecture in ARCHITECTURES.split() or ["none"]):
    sys.exit(f"SDSGSM_CUDA_ARCHITECTURES: expected numbers such as 90, found {ARCHITECTURES!r}")


def sources(*patterns: str) -> list[str]:
    """Source files under csrc, relative to this file as setuptools wants them."""
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(f"csrc/{pattern}"))


def find_nvcc() -> str | None:
    """Path of nvcc: on PATH, or under CUDA_HOME."""
    home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    return shutil.which("nvcc") or shutil.which("nvcc", path=str(home / "bin"))


def gpu_codes(nvcc: str) -> list[str]:
    """Options of nvcc for the architectures that it knows; none if it knows none."""
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True).stdout
    known = [a for a in ARCHITECTURES.split() if f"compute_{a}" in listed.split()]
    codes = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in known]
    newest = max(known, key=int, default="0")
    codes += [f"-gencode=arch=compute_{newest},code=compute_{newest}"] if known else []
    # On a GPU with clusters code for an older one would run without their part of a kernel.
    return [*codes, f"-DSDSGSM_CLUSTERS={int(int(newest) >= 90)}"] if known else []


def forget_modules(folder: Path) -> None:
    """Remove the compiled modules of an earlier build: new Python must not drive old kernels."""
    for module in [*folder.glob("_native_*.so"), *folder.glob("_native_*.pyd")]:
        module.unlink()


def record(folder: Path, **outcome: str) -> None:
    """Write what became of each module, for ``sdsgsm info``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INFO).write_text(json.dumps(outcome, indent=2) + "\n")


def cpu_extension() -> Extension:
    """Describe the CPU module.

    It is compiled with OpenMP but not linked to a runtime: the one that torch has loaded serves
    both, so there is one pool of threads (kernels/native.py makes sure that there is one).
    """
    import pybind11

    return Extension(
        f"{PACKAGE}._native_cpu",
        sources=sources("bind_cpu.cpp", "cpu/*.cpp"),
        depends=sources("*.h", "cpu/*.h", "cpu/*.inl"),
        include_dirs=[pybind11.get_include()],
        extra_compile_args=[
            *("-std=c++17", "-O3", "-fopenmp", "-fno-math-errno", "-fno-trapping-math"),
            *("-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-psabi", "-g0"),
        ],
        language="c++",
    )


class BuildKernels(build_ext):
    """Compile the modules one by one and record, for ``sdsgsm info``, what became of each."""

    def run(self) -> None:
        """Build, or record why not."""
        in_tree = self.inplace or self.editable_mode
        folder = ROOT / PACKAGE if in_tree else Path(self.build_lib) / PACKAGE
        forget_modules(folder)
        cpu = self.build_cpu()
        log = (folder if in_tree else Path(self.build_temp)) / "_nvcc.log"
        record(folder, cpu=cpu, cuda=self.build_cuda(cpu, log), cuda_architectures=ARCHITECTURES)

    def build_extension(self, extension: Extension) -> None:
        """Compile the source files side by side."""
        compile_one, output = self.compiler.compile, []

        def compile_all(files: list[str], *args: object, **options: object) -> list[str]:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                for objects in pool.map(lambda f: compile_one([f], *args, **options), files):
                    output.extend(objects)
            return output

        self.compiler.compile = compile_all
        try:
            super().build_extension(extension)
        finally:
            self.compiler.compile = compile_one

    def build_cpu(self) -> str:
        """Compile the CPU module; returns "built" or the reason why not."""
        try:
            super().run()
        except Exception as error:  # whatever breaks a compiler, the package works without it
            if MODE == "cpu":
                raise
            reason = " ".join(str(error).split())
            if "No such file or directory" in reason:
                reason = f"no C++ compiler: {reason.split(': ')[-1]} was not found"
            print(f"warning: CPU kernels not built, continuing in pure Python: {reason}")
            return f"not built: {reason}"
        return "built"

    def build_cuda(self, cpu: str, log: Path) -> str:
        """Compile the CUDA module with nvcc; returns "built" or the reason why not."""
        nvcc = find_nvcc()
        if MODE != "auto":
            return f"not built: SDSGSM_BUILD={MODE}"
        if cpu != "built":
            return "not built: nor were the CPU kernels"
        if nvcc is None:
            return "not built: nvcc was not found on PATH or in CUDA_HOME"
        try:
            codes = gpu_codes(nvcc)
            if not codes:
                return f"not built: {nvcc} knows none of {ARCHITECTURES}"
            return self.run_nvcc(nvcc, codes, log)
        except OSError as error:
            return f"not built: nvcc does not run: {error}"

    def run_nvcc(self, nvcc: str, codes: list[str], log: Path) -> str:
        """Compile and link ``_native_cuda``."""
        import pybind11

        target = Path(self.get_ext_fullpath(f"{PACKAGE}._native_cuda"))
        for needed in (target, log):
            needed.parent.mkdir(parents=True, exist_ok=True)
        includes = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
        command = [nvcc, "-shared", "-O3", "-std=c++17", "--cudart", "static", "--threads", "0"]
        command += ["-Xfatbin", "-compress-all", "-Xptxas", "-v", *codes, *includes]
        command += ["-Xcompiler", "-fPIC,-fvisibility=hidden,-Wall,-Wextra"]
        command += [*sources("bind_cuda.cpp", "cuda/*.cu"), "-o", str(target)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        said = done.stdout + done.stderr
        log.write_text(said)
        if done.returncode:
            print(f"warning: CUDA kernels not built:\n{said}")
            errors = [line for line in said.splitlines() if "error" in line.lower()]
            return f"not built: nvcc failed: {(errors or ['it did not say why'])[0]}"
        return "built"


class BuildPackage(build_py):
    """Copy the package afresh: nothing of an earlier build stays."""

    def run(self) -> None:
        """Drop what an earlier build left, copy, and record the case that compiles nothing."""
        folder = ROOT / PACKAGE if self.editable_mode else Path(self.build_lib) / PACKAGE
        if not self.editable_mode:
            shutil.rmtree(folder, ignore_errors=True)
        super().run()
        if MODE == "none":
            forget_modules(folder)
            reason = "not built: SDSGSM_BUILD=none"
            record(folder, cpu=reason, cuda=reason)


setup(
    ext_modules=[] if MODE == "none" else [cpu_extension()],
    cmdclass={"build_ext": BuildKernels, "build_py": BuildPackage},
)
