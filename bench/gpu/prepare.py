"""Prepare, on a machine without a GPU, what bench/gpu.sh would spend a GPU's time on.

    python3.12 bench/gpu/prepare.py DIR

with the Python version of the machine that has the GPU, nvcc, and this package's needs. DIR gets the
compiled modules (for sm_90, or $SDSGSM_CUDA_ARCHITECTURES), a trained ResNet-18 in half precision,
crops of photographs as bytes, and the wheels of the libraries that are compared with. Training takes
some ten minutes on two cores; what is there already is kept.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
RIVALS = ("captum", "torchattacks", "foolbox", "eagerpy", "GitPython", "gitdb", "smmap", "adv-lib")


def digest() -> str:
    """Of all that the modules are compiled from."""
    found = hashlib.sha256()
    for path in [ROOT / "setup.py", *sorted((ROOT / "csrc").rglob("*"))]:
        if path.is_file():
            found.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return found.hexdigest()


def modules(folder: Path) -> None:
    """Compile both modules for this Python in a copy of the tree."""
    with tempfile.TemporaryDirectory() as place:
        source = Path(place) / "source"
        shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "build", "*.so"))
        environment = {"SDSGSM_CUDA_ARCHITECTURES": "90", **os.environ}
        subprocess.run(
            [sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=source, env=environment, check=True
        )
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("_native_cpu*.so", "_native_cuda*.so", "_build_info.json", "_nvcc.log"):
            for path in (source / "sdsgsm_fast").glob(name):
                shutil.copy(path, folder)
    (folder / "sources.sha256").write_text(f"{digest()}\n")
    if len(list(folder.glob("*.so"))) < 2:
        sys.exit(f"prepare: not built, see {folder / '_build_info.json'}")


def _current(folder: Path) -> bool:
    """Whether modules are of these sources."""
    noted = folder / "sources.sha256"
    return noted.is_file() and noted.read_text().strip() == digest()


def weights(path: Path) -> None:
    """A trained ResNet-18 for 32×32 crops, in half precision."""
    sys.path.append(str(ROOT / "bench"))
    from attack import trained_resnet18
    from safetensors.torch import save_file

    state = trained_resnet18().state_dict()
    save_file({k: v.half() if v.is_floating_point() else v for k, v in state.items()}, path)


def crops(path: Path) -> None:
    """Test crops of photographs and their labels; scikit-image is not needed to read them again."""
    import torch
    from safetensors.torch import save_file

    from sdsgsm_fast.data.photos import photo_crops

    images, labels = photo_crops("test", 128)
    save_file({"images": images.mul(255).round().to(torch.uint8), "labels": labels}, path)


def wheels(folder: Path) -> None:
    """The rivals, without what they need: PyTorch and its like are there."""
    command = [sys.executable, "-m", "pip", "-q", "download", "--no-deps", "--only-binary=:all:", "-d", str(folder)]
    subprocess.run([*command, *RIVALS], check=True)


def main() -> None:
    """Make what is missing."""
    if sys.argv[1:] == ["--digest"]:
        print(digest())
        return
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in (("modules", modules), ("crops.safetensors", crops), ("wheels", wheels),
                       ("resnet18.safetensors", weights)):  # fmt: skip
        stale = name == "modules" and not _current(folder / name)
        if stale:
            shutil.rmtree(folder / name, ignore_errors=True)
        if not (folder / name).exists():
            print(f"preparing {name} ...", flush=True)
            make(folder / name)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
