"""Files of every kind that the command line reads, damaged at random: one line that says so, or what the file says."""

from __future__ import annotations

import os
import pickle
import random
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nets import convnet
from PIL import Image
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_tensors

from sdsgsm_fast import BIM, images, models, runs
from sdsgsm_fast.data.images import ArraySet

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "40"))
FUZZ = settings(
    max_examples=EXAMPLES, deadline=None, derandomize="FUZZ_EXAMPLES" not in os.environ, database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 3, 8, 8), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])
NUMBERS = (b"0", b"-1", b"99999999999999999999", b"1e999", b"null", b"NaN", b'"x"', b"[]", b"{}", b"4294967296")
WORDS = (0, 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1, 8, 100)


@st.composite
def damage(draw: Any) -> Callable[[bytes], bytes]:
    """A few changes of a file."""
    seed, count = draw(st.integers(0, 2**32)), draw(st.integers(1, 4))

    def change(content: bytes) -> bytes:
        chance = random.Random(seed)
        for _ in range(count):
            at = (
                chance.randrange(len(content) + 1)
                if chance.random() < 0.5
                else chance.randrange(min(len(content), 300) + 1)
            )
            kind = chance.randrange(7)
            if kind == 0 and at < len(content):
                content = content[:at] + bytes([content[at] ^ chance.randrange(1, 256)]) + content[at + 1 :]
            elif kind == 1:
                content = content[:at]
            elif kind == 2:
                content = content[:at] + content[at + chance.randrange(1, 40) :]
            elif kind == 3:
                content = content[:at] + chance.randbytes(chance.randrange(1, 40)) + content[at:]
            elif kind == 4:
                content = content[:at] + content[max(0, at - 64) : at] * 2 + content[at:]
            elif kind == 5:
                content = content[:at] + chance.choice(WORDS).to_bytes(8, "little") + content[at + 8 :]
            else:
                found = list(re.finditer(rb"\d+", content[:4000]))
                if found:
                    where = chance.choice(found)
                    content = content[: where.start()] + chance.choice(NUMBERS) + content[where.end() :]
        return content

    return change


def _npz(folder: Path) -> tuple[Path, Path]:
    path = folder / "data.npz"
    np.savez(
        path, images=PIXELS, labels=LABELS, classes=np.array(["a", "b", "c"]), mean=np.array([0.5]), std=np.array([0.5])
    )
    return path, path


def _safetensors(folder: Path) -> tuple[Path, Path]:
    path = folder / "data.safetensors"
    save_file(
        {"images": PIXELS, "labels": LABELS},
        path,
        metadata={"classes": '["a", "b", "c"]', "mean": "[0.5]", "std": "[0.5]"},
    )
    return path, path


def _folder(folder: Path) -> tuple[Path, Path]:
    for i, image in enumerate(PIXELS):
        at = folder / "images" / "abc"[LABELS[i]]
        at.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(at / f"{i}.{'png' if i % 2 else 'jpg'}")
    return folder / "images", at / "5.png"


def _tar(folder: Path, mode: str = "w") -> tuple[Path, Path]:
    source, _ = _folder(folder)
    path = folder / "images.tar"
    with tarfile.open(path, mode) as archive:
        archive.add(source, "images")
    return path, path


def _cifar(folder: Path) -> tuple[Path, Path]:
    at = folder / "cifar"
    at.mkdir(exist_ok=True)
    batch = {"data": np.zeros((6, 3072), dtype=np.uint8), "labels": LABELS.tolist(), "filenames": ["x"] * 6}
    (at / "test_batch").write_bytes(pickle.dumps(batch, protocol=2))
    (at / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}, protocol=2))
    return at, at / "test_batch"


SOURCES: dict[str, Callable[[Path], tuple[Path, Path]]] = {
    "npz": _npz, "safetensors": _safetensors, "folder": _folder, "tar": _tar, "cifar": _cifar,
    "tar.gz": lambda folder: _tar(folder, "w:gz"), "tar.xz": lambda folder: _tar(folder, "w:xz"),
}  # fmt: skip
"""What is loaded, and the file of it that is damaged."""


def _none_after(error: Exception) -> None:
    assert str(error)
    assert "\n" not in str(error)


def one_line(call: Callable[[], Any]) -> Any:
    """The result; None after an error of one line."""
    try:
        return call()
    except (ValueError, OSError) as error:
        return _none_after(error)


def listing(folder: Path) -> list[str]:
    return sorted(str(p) for p in folder.rglob("*"))


@pytest.mark.parametrize("kind", SOURCES)
@FUZZ
@given(change=damage())
def test_images(kind: str, change: Callable[[bytes], bytes], tmp_path_factory: pytest.TempPathFactory) -> None:
    top = tmp_path_factory.mktemp("fuzz")
    (top / "inside").mkdir()
    at, victim = SOURCES[kind](top / "inside")
    victim.write_bytes(change(victim.read_bytes()))
    before = listing(top)

    def load() -> None:
        found = images.load(at)
        pixels, labels = found.rows(range(len(found)))
        assert pixels.dtype == torch.float32
        assert not len(pixels) or 0 <= float(pixels.min()) <= float(pixels.max()) <= 1
        assert labels.dtype == torch.int64
        assert bool((labels >= 0).all())

    one_line(load)
    assert listing(top) == before, "nothing is written or unpacked"


@pytest.fixture(scope="module")
def factory(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, bytes]:
    """A model's factory and weights that fit it."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "made.py").write_text(
        "from torch import nn\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(192, 3))\n"
    )
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3))
    save_tensors(net.state_dict(), folder / "net.safetensors", metadata={"mean": "[0.5]", "std": "[0.25]"})
    return f"{folder / 'made.py'}:net", (folder / "net.safetensors").read_bytes()


@FUZZ
@given(change=damage())
def test_weights(
    change: Callable[[bytes], bytes], factory: tuple[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "net.safetensors"
    path.write_bytes(change(factory[1]))
    loaded = one_line(lambda: models.load(factory[0], weights=path))
    if loaded is not None:
        assert loaded.model(torch.rand(2, 3, 8, 8)).shape == (2, 3)


@pytest.fixture(scope="module")
def a_set(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("set")
    data = ArraySet("arrays", np.tile(PIXELS, (1, 1, 2, 2)), LABELS, classes=("a", "b", "c"))
    runs.attack_dataset(BIM(convnet(), steps=2), data, folder, shard_size=3, keep=("domain",))
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != ".lock"}


@FUZZ
@given(change=damage(), data=st.data())
def test_sets(
    change: Callable[[bytes], bytes],
    data: st.DataObject,
    a_set: dict[str, bytes],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    top = tmp_path_factory.mktemp("fuzz")
    folder = top / "inside"
    folder.mkdir()
    name = data.draw(st.sampled_from(sorted(a_set)))
    for other, content in a_set.items():
        (folder / other).write_bytes(change(content) if other == name else content)
    damaged = (folder / name).read_bytes() != a_set[name]
    before = listing(top)
    assert runs.verify(folder).sound != damaged
    found = one_line(lambda: runs.load(folder))
    if found is not None and len(found) < 100:
        for read in (lambda: found.columns, lambda: found[0], lambda: found[len(found) - 1], lambda: found.read(0)):
            one_line(read)
    assert listing(top) == before
    one_line(lambda: runs.write_report(folder, top / "page.html", gallery=5))
    assert set(listing(top)) <= {*before, str(top / "page.html")}
