"""Labelled images from files of every format, small ones made here; hostile ones end in one line."""

from __future__ import annotations

import io
import json
import lzma
import os
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from sdsgsm_fast import images as sources
from sdsgsm_fast.data import images as module

RNG = np.random.default_rng(0)


def pixels(count: int, size: int = 32) -> np.ndarray:
    return RNG.integers(0, 256, (count, 3, size, size), dtype=np.uint8)


def cifar(folder: Path, kind: int, *, bytes_keys: bool) -> dict[str, tuple[np.ndarray, list[int]]]:
    """Batches as the original files hold them: Python 2's have keys of bytes."""
    test, train, meta, labels_key, names_key = module.CIFAR[kind]
    folder.mkdir(parents=True, exist_ok=True)
    made = {}
    for name in (test, *train):
        images, labels = pixels(4), RNG.integers(0, kind, 4).tolist()
        made[name] = images, labels
        content: dict[Any, Any] = {"data": images.reshape(4, -1), labels_key: labels, "filenames": ["a.png"] * 4}
        if bytes_keys:
            content = {k.encode(): v for k, v in content.items()}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    (folder / meta).write_bytes(pickle.dumps({names_key: [f"class {i}" for i in range(kind)]}, protocol=2))
    return made


def python2(content: dict[str, Any]) -> bytes:
    """A batch as Python 2 pickles it in protocol 2: strings of bytes, also for an array's values."""

    def string(text: bytes) -> bytes:
        return b"U" + bytes([len(text)]) + text if len(text) < 256 else b"T" + struct.pack("<I", len(text)) + text

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    out = b"\x80\x02}q\x01("
    for key, value in content.items():
        out += string(key.encode())
        if isinstance(value, np.ndarray):
            shape = b"(" + b"".join(map(number, value.shape)) + b"t"
            dtype = b"cnumpy\ndtype\n" + string(b"u1") + number(0) + number(1) + b"\x87R"
            dtype += b"(" + number(3) + string(b"|") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
            out += b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + number(0) + b"\x85" + string(b"b")
            out += b"\x87R(" + number(1) + shape + dtype + b"\x89" + string(value.tobytes()) + b"tb"
        else:
            out += b"]("
            out += b"".join(number(v) if isinstance(v, int) else string(v.encode()) for v in value) + b"e"
    return out + b"u."


def test_python2s_own_pickles(tmp_path: Path) -> None:
    """The original files are such."""
    made = cifar(tmp_path, 10, bytes_keys=False)
    images, labels = made["test_batch"]
    content = {"data": images.reshape(4, -1), "labels": labels, "filenames": ["x.png"] * 4}
    raw = python2(content)
    assert pickle.loads(raw, encoding="latin1")["labels"] == labels, "it is a pickle"
    (tmp_path / "test_batch").write_bytes(raw)
    (tmp_path / "batches.meta").write_bytes(python2({"label_names": list("abcdefghij")}))
    found = sources.load(tmp_path)
    assert np.array_equal((found.rows(range(4))[0] * 255).round().byte().numpy(), images)
    assert found.classes == tuple("abcdefghij")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol(protocol: int, tmp_path: Path) -> None:
    made = cifar(tmp_path, 10, bytes_keys=False)
    images, labels = made["test_batch"]
    content = {"data": images.reshape(4, -1), "labels": labels}
    (tmp_path / "test_batch").write_bytes(pickle.dumps(content, protocol))
    assert sources.load(tmp_path)[3][1] == labels[3]


def packed(folder: Path, path: Path, mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:
        archive.add(folder, folder.name)
    return path


@pytest.mark.parametrize("kind", [10, 100])
@pytest.mark.parametrize("as_tar", [False, True])
@pytest.mark.parametrize("bytes_keys", [False, True])
def test_cifar(kind: int, as_tar: bool, bytes_keys: bool, tmp_path: Path) -> None:
    folder = tmp_path / f"cifar-{kind}-python"
    made = cifar(folder, kind, bytes_keys=bytes_keys)
    at = packed(folder, tmp_path / "cifar.tar.gz") if as_tar else folder
    test, train, *_ = module.CIFAR[kind]
    for split, names in (("test", [test]), ("train", train)):
        found = sources.load(at, split=split)
        images, labels = found.rows(range(len(found)))
        assert torch.equal((images * 255).round().byte(), torch.from_numpy(np.concatenate([made[n][0] for n in names])))
        assert labels.tolist() == [label for n in names for label in made[n][1]]
    assert found.classes == tuple(f"class {i}" for i in range(kind))
    assert found.mean == module.CIFAR_STATISTICS[kind][0]


def image_folder(root: Path, suffix: str = ".png") -> dict[str, np.ndarray]:
    made = {}
    for label in ("cat", "ant", "bee"):
        (root / label).mkdir(parents=True)
        for i in range(3):
            values = pixels(1, 12)[0].transpose(1, 2, 0)
            Image.fromarray(values).save(root / label / f"{i}{suffix}")
            made[f"{label}/{i}"] = values
    (root / "cat" / "notes.txt").write_text("no image")
    return made


@pytest.mark.parametrize("as_tar", ["", "w", "w:gz"])
@pytest.mark.parametrize("inside", ["", "test", "data/test"])
def test_a_folder_a_class(as_tar: str, inside: str, tmp_path: Path) -> None:
    root = tmp_path / "set"
    made = image_folder(root / inside)
    at = packed(root, tmp_path / ("set.tar.gz" if as_tar == "w:gz" else "set.tar"), as_tar) if as_tar else root
    found = sources.load(at)
    assert found.classes == ("ant", "bee", "cat")
    images, labels = found.rows(range(9))
    assert labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for row, name in enumerate(sorted(made)):
        assert np.array_equal((images[row] * 255).round().byte().numpy().transpose(1, 2, 0), made[name])
    again = pickle.loads(pickle.dumps(found))  # as a DataLoader's worker gets it
    assert torch.equal(again.rows([4])[0], images[4:5])


def test_jpeg_grey_and_transparent_images(tmp_path: Path) -> None:
    folder = tmp_path / "set" / "one"
    folder.mkdir(parents=True)
    values = np.full((16, 16, 3), 100, dtype=np.uint8)
    Image.fromarray(values).save(folder / "a.jpg")
    Image.fromarray(values[:, :, 0]).save(folder / "b.PNG")
    Image.fromarray(np.dstack([values, np.full((16, 16), 255, np.uint8)])).save(folder / "c.png")
    (tmp_path / "set" / "two").mkdir()
    Image.fromarray(values).save(tmp_path / "set" / "two" / "d.jpeg")
    images, labels = sources.load(tmp_path / "set").rows(range(4))
    assert images.shape == (4, 3, 16, 16)
    assert labels.tolist() == [0, 0, 0, 1]
    assert (images * 255 - 100).abs().max() <= 1


def test_sizes_are_made_one_when_asked(tmp_path: Path) -> None:
    for name, shape in (("a", (20, 30, 3)), ("b", (50, 40, 3))):
        (tmp_path / name).mkdir()
        Image.fromarray(np.full(shape, 90, np.uint8)).save(tmp_path / name / "x.png")
    with pytest.raises(ValueError, match=r"b.x.png: expected 20×30 pixels as the others, found 50×40; give a size"):
        sources.load(tmp_path).rows([0, 1])
    images, _ = sources.load(tmp_path, size=16).rows([0, 1])
    assert images.shape == (2, 3, 16, 16)
    assert (images * 255 - 90).abs().max() < 1e-3


@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("kind", ["npz", "safetensors"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_arrays(layout: str, kind: str, dtype: Any, tmp_path: Path) -> None:
    images, labels = pixels(5, 9), np.array([3, 0, 1, 1, 2])
    given = images if dtype == np.uint8 else (images / 255).astype(np.float32)
    given = np.ascontiguousarray(given if layout == "first" else given.transpose(0, 2, 3, 1))
    path = tmp_path / f"set.{kind}"
    if kind == "npz":
        np.savez(path, images=given, labels=labels, classes=np.array(list("abcd")), mean=[0.5, 0.4, 0.3])
    else:
        known = {"classes": json.dumps(list("abcd")), "mean": "[0.5, 0.4, 0.3]"}
        save_file({"images": given, "labels": labels}, path, known)
    found = sources.load(path)
    rows, classes = found.rows(range(5))
    assert torch.allclose(rows, torch.from_numpy(images).float() / 255, atol=1e-7)
    assert classes.tolist() == labels.tolist()
    assert found.classes == tuple("abcd")
    assert found.mean == (0.5, 0.4, 0.3)
    assert [len(y) for _, y in found.batches(2)] == [2, 2, 1]
    assert [y.tolist() for _, y in found.batches(2, limit=3, start=1)] == [[0, 1], [1]]
    image, label = found[2]
    assert torch.equal(image, rows[2])
    assert label == 1


def test_the_embedded_photographs() -> None:
    found = sources.load("photos")
    assert len(found) == 320
    assert found.classes is not None
    assert len(found.classes) == 10
    assert "320 images, 10 classes" in module.described(found)


class Evil:
    """What a hostile pickle runs when it is read without care."""

    def __init__(self, command: Any) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.mkdir, (self.command,)


def test_pickles_are_not_executed(tmp_path: Path) -> None:
    folder = tmp_path / "cifar"
    cifar(folder, 10, bytes_keys=False)
    trace = tmp_path / "executed"
    for content in ({"data": Evil(str(trace)), "labels": [0]}, Evil(str(trace)), {"labels": [Evil(str(trace))]}):
        (folder / "test_batch").write_bytes(pickle.dumps(content, protocol=2))
        with pytest.raises(ValueError, match=r"test_batch: .* refers to .*mkdir, which is not executed"):
            sources.load(folder)
        assert not trace.exists()


def object_array(_: Path) -> bytes:
    return pickle.dumps({"data": np.array([None, 1], dtype=object), "labels": [0, 1]}, protocol=2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda _: b"", "test_batch: not a batch of CIFAR"),
        (lambda _: b"garbage", "test_batch: not a batch of CIFAR"),
        (lambda _: pickle.dumps([1, 2]), "test_batch: expected a pickled dictionary, found list"),
        (lambda _: pickle.dumps({"labels": [1]}), "test_batch: expected 'data' of 8-bit values"),
        (object_array, "test_batch: not a batch of CIFAR"),
        (lambda _: pickle.dumps({"data": pixels(2).reshape(2, -1), "labels": [1]}, 2), "expected a list of 2 'labels'"),
        (lambda _: pickle.dumps({"data": pixels(1).reshape(1, -1), "labels": [10]}, 2), "expected labels of 0..9"),
        (lambda _: pickle.dumps({"data": pixels(1).reshape(1, -1), "labels": ["x"]}, 2), "expected labels of 0..9"),
        (lambda _: pickle.dumps({"data": np.zeros((1, 7), np.uint8), "labels": [1]}, 2), "expected 'data' of 8-bit"),
        (lambda old: old[:-20], "test_batch: not a batch of CIFAR"),
    ],
)  # fmt: skip
def test_damaged_cifar(content: Any, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "cifar"
    cifar(folder, 10, bytes_keys=False)
    (folder / "test_batch").write_bytes(content((folder / "test_batch").read_bytes()))
    with pytest.raises(ValueError, match=message) as error:
        sources.load(folder)
    assert "\n" not in str(error.value)


NESTED: Any = "z" * 100
for _ in range(8):
    NESTED = [NESTED] * 10


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"\x80\x02}" + b")" + b"\x85" * 200_000 + b"K\x01s.", "expected str, found tuple"),
        (b"\x80\x02}" + b")" + b"2\x86" * 36 + b"K\x01s.", "not a batch"),
        (b"\x80\x02}r" + struct.pack("<I", 60_000_000) + b".", "expected 'data'"),
        (b"\x80\x02c" + b"x" * 2_000_000 + b"\nfoo\n.", "it refers to x"),
        (b"\x80\x02(" * 1000 + b".", "expected a pickled dictionary"),
        (b"I" + b"9" * 100_000 + b"\n.", "not a batch"),
    ],
    ids=["deep key", "doubling key", "large memo", "long name", "marks", "long number"],
)  # fmt: skip
def test_pickles_that_crash_or_hang_others(raw: bytes, message: str, tmp_path: Path) -> None:
    cifar(tmp_path, 10, bytes_keys=False)
    (tmp_path / "test_batch").write_bytes(raw)
    with pytest.raises(ValueError, match=message) as error:
        sources.load(tmp_path)
    assert len(str(error.value)) < 700
    assert "\n" not in str(error.value)


def test_what_copies_itself_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A megabyte that is asked for again and again."""
    from sdsgsm_fast.data import unpickle

    cifar(tmp_path, 10, bytes_keys=False)
    text = b"X" + struct.pack("<I", 10**6) + b"a" * 10**6
    head = b"\x80\x02](c_codecs\nencode\nq\x00" + text + b"q\x01X" + struct.pack("<I", 6) + b"latin1q\x02"
    (tmp_path / "test_batch").write_bytes(head + b"h\x00h\x01h\x02\x86R" * 300 + b"e.")
    monkeypatch.setattr(unpickle, "MAX_BYTES", 10**8)
    with pytest.raises(ValueError, match="it makes more than 100000000 bytes"):
        sources.load(tmp_path)


def test_names_are_names(tmp_path: Path) -> None:
    """Nested lists are neither printed nor taken."""
    cifar(tmp_path, 10, bytes_keys=False)
    (tmp_path / "batches.meta").write_bytes(pickle.dumps({"label_names": [NESTED] * 10}, protocol=2))
    assert sources.load(tmp_path).classes is None


def test_every_byte_of_a_batch_may_be_wrong(tmp_path: Path) -> None:
    """Damage is an error, or other pixels: never anything else."""
    folder = tmp_path / "cifar"
    cifar(folder, 10, bytes_keys=False)
    whole = (folder / "test_batch").read_bytes()
    for at in [*range(0, 200), *range(len(whole) - 120, len(whole)), *range(200, len(whole), 997)]:
        damaged = bytearray(whole)
        damaged[at] ^= 1 << int(RNG.integers(8))
        (folder / "test_batch").write_bytes(bytes(damaged))
        try:
            found = sources.load(folder)
        except ValueError as error:
            assert "\n" not in str(error)  # noqa: PT017
        else:
            assert found.rows(range(len(found)))[0].shape[1:] == (3, 32, 32)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "nowhere: no such file or folder"),
        (lambda p: p.mkdir(), "expected a folder a class with .png, .jpg, .jpeg files, found none"),
        (lambda p: (p / "a").mkdir(parents=True), "found none"),
    ],
)  # fmt: skip
def test_what_is_not_there(make: Any, message: str, tmp_path: Path) -> None:
    make(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=message):
        sources.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.tar", b"garbage", "x.tar: not a readable tar archive"),
        ("x.tar.gz", b"\x1f\x8b garbage", "x.tar.gz: not a readable tar archive"),
        ("x.npz", b"garbage", "x.npz: not a readable .npz file"),
        ("x.safetensors", b"\xff" * 64, "x.safetensors: not a readable .safetensors file"),
        ("x.safetensors", b"", "x.safetensors: not a readable .safetensors file"),
        ("x.png", b"", "expected a folder, or a .tar"),
    ],
)
def test_damaged_files(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        sources.load(tmp_path / name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": np.zeros(2, int)}, "found no 'images'"),
        ({"images": pixels(2)}, "found no 'labels'"),
        ({"images": pixels(2), "labels": np.zeros(3, int)}, r"expected integer labels of shape \(2,\)"),
        ({"images": pixels(2), "labels": np.zeros(2)}, "expected integer labels"),
        ({"images": pixels(2), "labels": np.array([2**63, 0], np.uint64)}, "expected labels from 0 on"),
        ({"images": pixels(2), "labels": np.array([-1, 0])}, "expected labels from 0 on, found -1..0"),
        ({"images": pixels(2)[0], "labels": np.zeros(3, int)}, r"expected images \(N, C, H, W\)"),
        ({"images": pixels(2).astype(np.float32), "labels": np.zeros(2, int)}, r"floating images in \[0, 1\]"),
        ({"images": np.full((1, 3, 4, 4), np.nan), "labels": np.zeros(1, int)}, r"floating images in \[0, 1\]"),
        ({"images": pixels(2).astype(np.int32), "labels": np.zeros(2, int)}, "in 8 bits or floating, found int32"),
        ({"images": np.array([{}], dtype=object), "labels": np.zeros(1, int)}, "not a readable .npz file: Object arr"),
        ({"images": pixels(2), "labels": np.zeros(2, int), "mean": [0.5, 0.5]}, "mean: expected one value or one for"),
        ({"images": pixels(2), "labels": np.zeros(2, int), "classes": [1, 2]}, "expected 'classes' to be names"),
    ],
)  # fmt: skip
def test_bad_arrays(arrays: dict[str, Any], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(ValueError, match=message) as error:
        sources.load(tmp_path / "set.npz")
    assert "\n" not in str(error.value)


def test_limits_of_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "set" / "a").mkdir(parents=True)
    Image.fromarray(np.zeros((50, 50, 3), np.uint8)).save(tmp_path / "set" / "a" / "x.png")
    np.savez_compressed(tmp_path / "big.npz", images=np.zeros((100, 3, 32, 32), np.uint8), labels=np.zeros(100, int))
    archive = packed(tmp_path / "set", tmp_path / "set.tar.gz")
    monkeypatch.setattr(module, "MAX_PIXELS", 2000)
    with pytest.raises(ValueError, match=r"x.png: cannot be used as a PNG or JPEG image: 50×50 pixels, more than 2000"):
        sources.load(tmp_path / "set").rows([0])
    monkeypatch.setattr(module, "MAX_FILE", 20)
    with pytest.raises(ValueError, match=r"x.png: larger than 20 bytes"):
        sources.load(tmp_path / "set").rows([0])
    with pytest.raises(ValueError, match=r"x.png: larger than 20 bytes"):
        sources.load(archive)
    monkeypatch.setattr(module, "MAX_BYTES", 30)
    with pytest.raises(ValueError, match=r"big.npz: not a readable .npz file: holds .* bytes, more than 30"):
        sources.load(tmp_path / "big.npz")
    with pytest.raises(ValueError, match=r"set.tar.gz: not a readable tar archive: holds more than 30 bytes"):
        sources.load(archive)


def test_a_tar_is_not_unpacked_beyond_the_limit(tmp_path: Path) -> None:
    """A member that claims to be larger than the limit stops the search at once."""
    path = tmp_path / "bomb.tar.gz"
    import gzip

    info = tarfile.TarInfo("a/x.png")
    info.size = 2**40
    path.write_bytes(gzip.compress(info.tobuf() + bytes(4096)))
    with pytest.raises(ValueError, match=r"bomb.tar.gz: not a readable tar archive: holds more than"):
        sources.load(path)


def test_links_and_paths_in_a_tar_lead_nowhere(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(secret)
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        for kind, name in ((tarfile.SYMTYPE, "a/link.png"), (tarfile.LNKTYPE, "a/hard.png")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, str(secret)
            archive.addfile(info)
        buffer = io.BytesIO()
        Image.fromarray(np.ones((4, 4, 3), np.uint8)).save(buffer, "PNG")
        for name in ("../../b/up.png", "a/in.png"):
            info = tarfile.TarInfo(name)
            info.size = len(buffer.getvalue())
            archive.addfile(info, io.BytesIO(buffer.getvalue()))
    before = sorted(p.name for p in tmp_path.rglob("*"))
    found = sources.load(tmp_path / "set.tar")
    images, _ = found.rows(range(len(found)))
    assert len(found) == 2
    assert (images * 255).round().unique().tolist() == [1]
    assert sorted(p.name for p in tmp_path.rglob("*")) == before


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    image_folder(tmp_path / "set")
    (tmp_path / "set" / "bee" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n garbage")
    found = sources.load(tmp_path / "set")
    with pytest.raises(ValueError, match=r"bee.1.png: cannot be used as a PNG or JPEG image") as error:
        list(found.batches(4))
    assert "\n" not in str(error.value)


def test_sixteen_bit_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.fromarray(np.full((8, 8), 20000).astype(np.uint16)).save(tmp_path / "a" / "x.png")
    with pytest.raises(ValueError, match=r"x.png: cannot be used as a PNG or JPEG image: more than 8 bits a channel"):
        sources.load(tmp_path).rows([0])


def test_a_thin_image_is_cut_before_it_is_resized(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.fromarray(np.full((100_000, 1, 3), 70, np.uint8)).save(tmp_path / "a" / "x.png")
    images, _ = sources.load(tmp_path, size=8).rows([0])
    assert images.shape == (1, 3, 8, 8)
    assert (images * 255 - 70).abs().max() < 1e-3


def test_workers_read_an_archive_after_their_parent(tmp_path: Path) -> None:
    image_folder(tmp_path / "set")
    found = sources.load(packed(tmp_path / "set", tmp_path / "set.tar", "w"))
    expected = [found[i][0] for i in range(9)]  # the parent has it open
    loader = torch.utils.data.DataLoader(found, batch_size=2, num_workers=2, multiprocessing_context="fork")
    images = torch.cat([batch for batch, _ in loader])
    assert torch.equal(images, torch.stack(expected))


@pytest.mark.parametrize("kind", [tarfile.DIRTYPE, tarfile.SYMTYPE])
def test_a_later_entry_of_the_same_name_counts(kind: bytes, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.ones((4, 4, 3), np.uint8)).save(buffer, "PNG")
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        for name in ("a/x.png", "a/y.png"):
            info = tarfile.TarInfo(name)
            info.size = len(buffer.getvalue())
            archive.addfile(info, io.BytesIO(buffer.getvalue()))
        info = tarfile.TarInfo("a/x.png")
        info.type, info.linkname = kind, "x.png"
        archive.addfile(info)
    found = sources.load(tmp_path / "set.tar")
    assert len(found) == 1
    assert found[0][0].shape == (3, 4, 4)


def test_a_packed_tar_is_told_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cifar(tmp_path / "cifar", 10, bytes_keys=False)
    packed(tmp_path / "cifar", tmp_path / "renamed.tar")
    monkeypatch.setattr(module, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match=r"renamed.tar: not a readable tar archive: holds more than 1000 bytes"):
        sources.load(tmp_path / "renamed.tar")


def test_long_headers_are_not_read(tmp_path: Path) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2**29
    (tmp_path / "x.tar").write_bytes(info.tobuf() + bytes(4096))
    with pytest.raises(ValueError, match=r"x.tar: not a readable tar archive"):
        sources.load(tmp_path / "x.tar")


def test_damaged_xz(tmp_path: Path) -> None:
    image_folder(tmp_path / "set")
    whole = lzma.compress(packed(tmp_path / "set", tmp_path / "plain.tar", "w").read_bytes())
    for at in range(0, len(whole), 37):
        damaged = bytearray(whole)
        damaged[at] ^= 255
        (tmp_path / "x.tar.xz").write_bytes(bytes(damaged))
        try:
            list(sources.load(tmp_path / "x.tar.xz").batches(4))
        except ValueError as error:
            assert "\n" not in str(error)  # noqa: PT017


def test_names_of_members_do_not_break_lines(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        info = tarfile.TarInfo("a/b\nc.png")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"oops"))
    with pytest.raises(ValueError, match=r"a/b\?c.png: cannot be used as a PNG or JPEG image") as error:
        sources.load(tmp_path / "set.tar").rows([0])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["", "a" * 5000, "a\nb"])
def test_names_that_no_file_has(name: str) -> None:
    with pytest.raises(ValueError, match="no such file or folder") as error:
        sources.load(name)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_a_format_is_told_by_content_not_by_name(tmp_path: Path) -> None:
    (tmp_path / "set" / "a").mkdir(parents=True)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "set" / "a" / "x.png", format="BMP")
    with pytest.raises(ValueError, match=r"x.png: cannot be used as a PNG or JPEG image"):
        sources.load(tmp_path / "set").rows([0])


@pytest.mark.parametrize(("name", "value"), [("split", "val"), ("size", 0)])
def test_bad_arguments(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected"):
        sources.load("photos", **{name: value})


@pytest.mark.parametrize("as_tar", [False, True])
def test_a_batch_that_is_missing_is_named(as_tar: bool, tmp_path: Path) -> None:
    folder = tmp_path / "cifar"
    cifar(folder, 10, bytes_keys=False)
    (folder / "data_batch_3").unlink()
    with pytest.raises(ValueError, match="data_batch_3 is missing"):
        sources.load(packed(folder, tmp_path / "cifar.tar.gz") if as_tar else folder, split="train")
