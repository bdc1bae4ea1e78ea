"""Labelled images from what people have: CIFAR, a folder a class, archives, arrays.

Nothing that is read is executed or extracted, and nothing larger than a limit is read.
"""

from __future__ import annotations

import io
import json
import math
import os
import tarfile
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..common import checks
from ..common.lines import first_line, one_line
from ..common.optional import require
from . import photonet, photos
from .unpickle import load_plain

SUFFIXES = (".png", ".jpg", ".jpeg")
MAX_BYTES = 8 * 2**30  # of an array file, and of a packed archive, unpacked
MAX_FILE = 256 * 2**20  # of one image file
MAX_HEADER = 2**20  # of an archive's member
MAX_PIXELS = 64 * 2**20  # of one image

CIFAR = {
    10: ("test_batch", [f"data_batch_{i}" for i in range(1, 6)], "batches.meta", "labels", "label_names"),
    100: ("test", ["train"], "meta", "fine_labels", "fine_label_names"),
}
"""Files of the test and training images and of the names; keys of the labels and of the names."""

CIFAR_STATISTICS = {
    10: ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    100: ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
"""Mean and standard deviation of the training images' channels."""


@dataclass(frozen=True)
class Entry:
    """An image file that is read when it is asked for."""

    name: str
    label: int


class ImageSet(Dataset[tuple[Tensor, int]], ABC):
    """Labelled images in [0, 1], of one size, and what their source knows of them.

    `set[i]` is an image (C, H, W) float32 and its label. `batches` gives pairs of tensors, as
    attacks take them.

    Attributes
    ----------
    name
        Where they come from.
    classes
        Names of the classes, or None.
    mean, std
        Of the channels, in [0, 1], where the source tells; else None. They are those of the images:
        a model may have been trained with others.
    """

    def __init__(
        self,
        name: str,
        count: int,
        *,
        classes: tuple[str, ...] | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> None:
        self.name, self.count, self.classes, self.mean, self.std = name, count, classes, mean, std

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        images, labels = self.rows(range(index, index + 1))
        return images[0], int(labels[0])

    @abstractmethod
    def rows(self, chosen: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Images (n, C, H, W) float32 in [0, 1] and labels (n,) int64."""

    def batches(self, size: int, *, limit: int | None = None, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of at most `size` images, in order, from `start` on, `limit` images at most."""
        stop = self.count if limit is None else min(self.count, start + limit)
        for at in range(start, stop, size):
            yield self.rows(range(at, min(at + size, stop)))


class ArraySet(ImageSet):
    """Images that are in memory, in 8 bits or as numbers in [0, 1]."""

    def __init__(self, name: str, images: npt.NDArray[Any], labels: npt.NDArray[Any], **known: Any) -> None:
        images = _channels_first(name, images)
        if not np.issubdtype(labels.dtype, np.integer) or labels.shape != (len(images),):
            raise ValueError(
                f"{name}: expected integer labels of shape ({len(images)},), found {labels.dtype} of {labels.shape}"
            )
        if len(labels) and not 0 <= labels.min() <= labels.max() < 2**31:
            raise ValueError(f"{name}: expected labels from 0 on, found {labels.min()}..{labels.max()}")
        super().__init__(name, len(images), **known)
        self.images, self.labels = images, labels.astype(np.int64)

    def rows(self, chosen: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Images (n, C, H, W) float32 in [0, 1] and labels (n,) int64."""
        index = np.asarray(chosen, dtype=np.int64)
        return _unit(np.ascontiguousarray(self.images[index])), torch.from_numpy(self.labels[index])


class FileSet(ImageSet):
    """PNG and JPEG files in a folder a class, or in a tar of one."""

    def __init__(self, name: str, entries: list[Entry], size: int | None, archive: Path | None, **known: Any) -> None:
        super().__init__(name, len(entries), **known)
        self.entries, self.size, self.archive = entries, size, archive
        self._tar: tuple[int, tarfile.TarFile, dict[str, tarfile.TarInfo]] | None = None  # and who opened it
        self._shape: tuple[int, ...] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the open archive: a worker process opens it for itself."""
        return vars(self) | {"_tar": None}

    def rows(self, chosen: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Images (n, C, H, W) float32 in [0, 1] and labels (n,) int64."""
        entries = [self.entries[i] for i in chosen]
        pixels = [self._read(entry) for entry in entries]
        labels = torch.tensor([entry.label for entry in entries], dtype=torch.int64)
        return _unit(np.stack(pixels).transpose(0, 3, 1, 2).copy()), labels

    def _member(self, name: str) -> tuple[tarfile.TarFile, tarfile.TarInfo]:
        """The archive and a regular file in it; a forked process opens the archive for itself."""
        if self._tar is None or self._tar[0] != os.getpid():
            assert self.archive is not None
            self._tar = os.getpid(), *_opened_tar(self.archive)
        _, archive, members = self._tar
        if name not in members:
            raise ValueError("it is no regular file any more")
        return archive, members[name]

    def size_of(self, entry: Entry) -> int:
        """Bytes of an image file."""
        return Path(entry.name).stat().st_size if self.archive is None else self._member(entry.name)[1].size

    def _read(self, entry: Entry) -> npt.NDArray[np.uint8]:
        where = f"{self.name}: {one_line(entry.name)}"
        try:
            if self.archive is None:
                raw = _read_limited(Path(entry.name))
            else:
                archive, member = self._member(entry.name)
                raw = archive.extractfile(member).read(MAX_FILE + 1)  # type: ignore[union-attr]
        except Exception as error:  # of several kinds, by how the file is packed
            raise ValueError(f"{where}: cannot be read: {first_line(error)}") from error
        if len(raw) > MAX_FILE:
            raise ValueError(f"{where}: larger than {MAX_FILE} bytes")
        found = decoded(raw, where, self.size)
        self._shape = self._shape or found.shape
        if found.shape != self._shape:
            raise ValueError(
                f"{where}: expected {self._shape[0]}×{self._shape[1]} pixels as the others, found "
                f"{found.shape[0]}×{found.shape[1]}; give a size to which all are resized"
            )
        return found


def decoded(raw: bytes, where: str, size: int | None) -> npt.NDArray[np.uint8]:
    """Decode a PNG or JPEG file to (H, W, 3) in 8 bits.

    With a `size` its shorter side is resized to that, and its middle cut out, size × size.

    Raises
    ------
    ValueError
        If it is damaged, of another format, or too large.
    """
    image_module = require("PIL.Image", extra="cli", purpose="reading image files")
    try:
        with image_module.open(io.BytesIO(raw), formats=("PNG", "JPEG")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width}×{image.height} pixels, more than {MAX_PIXELS}")
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"more than 8 bits a channel ({image.mode})")
            found = image.convert("RGB")
            if size is not None:
                found = _resized(found, size, image_module.Resampling.BILINEAR)
            return np.asarray(found, dtype=np.uint8)
    except Exception as error:  # a decoder raises whatever a damaged file leads it into
        raise ValueError(f"{where}: cannot be used as a PNG or JPEG image: {first_line(error)}") from error


def _resized(image: Any, size: int, resampling: Any) -> Any:
    """Cut out the middle square, and resize it."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.resize((size, size), resampling, box=(left, top, left + side, top + side))


def _read_limited(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_FILE + 1)


def load(source: str | Path, *, split: str = "test", size: int | None = None) -> ImageSet:
    """Open labelled images.

    Parameters
    ----------
    source
        "photos": the embedded crops. Otherwise a path: CIFAR-10 or CIFAR-100 in python format, a
        folder or the tar.gz; a folder a class with PNG and JPEG files, or a tar of one, names in
        alphabetical order being the labels; an .npz (no pickles) or .safetensors file with "images"
        and "labels", the images in 8 bits or in [0, 1], (N, C, H, W) or (N, H, W, C), and maybe
        "classes", "mean" and "std" (in the metadata of safetensors, as JSON).
    split
        "test" or "train", of the embedded crops and of CIFAR.
    size
        Side to which image files are resized and cut; None for as they are, all of one size.

    Raises
    ------
    ValueError
        If there is no such file, or it is damaged, of another kind or too large: one line.
    ModuleNotFoundError
        If a package that reads it is missing.
    """
    checks.choice("split", split, ("test", "train"))
    if size is not None:
        checks.integer("size", size, 1)
    if str(source) == "photos":
        return _photos(split)
    path = Path(source)
    if not str(source) or not _exists(path):
        raise ValueError(f"{one_line(str(source))}: no such file or folder; 'photos' are the embedded images")
    if path.is_dir():
        return _cifar_folder(path, split) or _class_folder(path, size)
    kinds = {".npz": _npz, ".safetensors": _safetensors}
    if path.suffix in kinds:
        return kinds[path.suffix](path)
    if ".tar" in path.suffixes or path.suffix in (".tgz", ".tar"):
        return _tar(path, split, size)
    raise ValueError(f"{path}: expected a folder, or a .tar, .tar.gz, .npz or .safetensors file")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long
        return False


def _photos(split: str) -> ImageSet:
    images, labels = photos.photo_crops(split, 32)
    pixels = (images * 255).round().to(torch.uint8).numpy()
    return ArraySet("photos", pixels, labels.numpy(), classes=photos.CLASS_NAMES, mean=photonet.MEAN, std=photonet.STD)


# CIFAR


def _cifar_folder(path: Path, split: str) -> ImageSet | None:
    """CIFAR in a folder, or in the one folder that its archive holds; None if it is not there."""
    for folder in (path, *sorted(path.glob("cifar-10*"))):  # cifar-10-batches-py, cifar-100-python
        for classes, (test, _, meta, *_) in CIFAR.items():
            if (folder / test).is_file() and (folder / meta).is_file():
                return _cifar(str(path), classes, split, lambda name, at=folder: (at / name).open("rb"))
    return None


def _cifar(name: str, classes: int, split: str, opened: Any) -> ImageSet:
    """Read CIFAR's batches; `opened` gives a file by its name."""
    test, train, meta, label_key, names_key = CIFAR[classes]
    parts = []
    for batch in [test] if split == "test" else train:
        with _present(opened, batch, name) as file:
            found = load_plain(file, f"{name}: {batch}")
        pixels, labels = found.get("data"), found.get(label_key)
        if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (3072,):
            raise ValueError(f"{name}: {batch}: expected 'data' of 8-bit values (N, 3072)")
        if not isinstance(labels, list) or len(labels) != len(pixels):
            raise ValueError(f"{name}: {batch}: expected a list of {len(pixels)} {label_key!r}")
        if not all(type(label) is int and 0 <= label < classes for label in labels):
            raise ValueError(f"{name}: {batch}: expected labels of 0..{classes - 1}")
        parts.append((pixels.reshape(-1, 3, 32, 32), np.array(labels, dtype=np.int64)))
    with _present(opened, meta, name) as file:
        names = load_plain(file, f"{name}: {meta}").get(names_key)
    known = None
    if isinstance(names, list) and len(names) == classes and all(type(n) in (str, bytes) for n in names):
        known = tuple(n.decode("latin1") if isinstance(n, bytes) else n for n in names)
    mean, std = CIFAR_STATISTICS[classes]
    images, labels = (np.concatenate(values) for values in zip(*parts, strict=True))
    return ArraySet(name, images, labels, classes=known, mean=mean, std=std)


def _present(opened: Any, member: str, name: str) -> BinaryIO:
    try:
        file: BinaryIO = opened(member)
        return file
    except (KeyError, FileNotFoundError) as error:
        raise ValueError(f"{name}: {member} is missing") from error
    except Exception as error:  # of several kinds, by how the file is packed
        raise ValueError(f"{name}: {member} cannot be read: {first_line(error)}") from error


# Folders and archives


def _class_folder(path: Path, size: int | None) -> ImageSet:
    """A folder a class; a lone folder in which they lie is entered."""
    root = path
    while True:
        folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
        if len(folders) != 1 or any(p.suffix.lower() in SUFFIXES for p in folders[0].iterdir()):
            break
        root = folders[0]
    files = [p for folder in folders for p in sorted(folder.rglob("*")) if p.is_file()]
    names = [(p.relative_to(root).parts[0], str(p)) for p in files if p.suffix.lower() in SUFFIXES]
    return _file_set(str(path), names, size, None)


def _file_set(name: str, files: list[tuple[str, str]], size: int | None, archive: Path | None) -> ImageSet:
    """Image files with the names of their classes."""
    classes = tuple(sorted({label for label, _ in files}))
    if not files:
        raise ValueError(f"{name}: expected a folder a class with {', '.join(SUFFIXES)} files, found none")
    index = {label: i for i, label in enumerate(classes)}
    entries = [Entry(file, index[label]) for label, file in sorted(files)]
    return FileSet(name, entries, size, archive, classes=classes)


def _tar(path: Path, split: str, size: int | None) -> ImageSet:
    """CIFAR's archive, or a tar of a folder a class; nothing is extracted."""
    archive, members = _opened_tar(path)
    with archive:
        at = {PurePosixPath(name).name: member for name, member in members.items()}
        for classes, (test, _, meta, *_) in CIFAR.items():
            if test in at and meta in at:
                return _cifar(str(path), classes, split, lambda name: archive.extractfile(at[name]))
    files = [m for m in members.values() if PurePosixPath(m.name).suffix.lower() in SUFFIXES]
    large = [m.name for m in files if m.size > MAX_FILE]
    if large:
        raise ValueError(f"{path}: {one_line(large[0])}: larger than {MAX_FILE} bytes")
    parts = {m.name: PurePosixPath(m.name).parts for m in files}
    depth = 0
    while files and all(len(p) > depth + 2 for p in parts.values()) and len({p[depth] for p in parts.values()}) == 1:
        depth += 1
    names = [(p[depth], name) for name, p in parts.items() if len(p) > depth + 1]
    return _file_set(str(path), names, size, path)


def _opened_tar(path: Path) -> tuple[tarfile.TarFile, dict[str, tarfile.TarInfo]]:
    """An archive and its regular files by name."""
    try:
        archive = tarfile.open(path, tarinfo=_Member)  # noqa: SIM115
        try:
            return archive, _members(archive, packed=_packed(path))
        except BaseException:
            archive.close()
            raise
    except Exception as error:  # of several kinds, by how the file is packed
        raise ValueError(f"{path}: not a readable tar archive: {first_line(error)}") from error


class _Member(tarfile.TarInfo):
    """A member whose long names and other headers are of a sane size: tarfile reads them whole."""

    def _proc_member(self, archive: tarfile.TarFile) -> Any:
        if not self.isreg() and self.size > MAX_HEADER:
            raise tarfile.ReadError(f"a header of {self.size} bytes")
        return super()._proc_member(archive)  # type: ignore[misc]


def _packed(path: Path) -> bool:
    """Whether a tar is compressed, whatever its name."""
    with path.open("rb") as file:
        return file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ"))


def _members(archive: tarfile.TarFile, *, packed: bool) -> dict[str, tarfile.TarInfo]:
    """Regular files by name; of a packed archive, no more than a limit is unpacked to find them."""
    members: dict[str, tarfile.TarInfo] = {}
    total = 0
    for member in archive:
        total += member.size
        if member.name in members and not member.isreg():
            del members[member.name]  # the later one is what unpacking would leave
        if packed and total > MAX_BYTES:
            raise ValueError(f"holds more than {MAX_BYTES} bytes; unpack it")
        if member.isreg():
            members[member.name] = member
    return members


# Arrays


def _npz(path: Path) -> ImageSet:
    try:
        with zipfile.ZipFile(path) as archive:
            total = sum(info.file_size for info in archive.infolist())
        if total > MAX_BYTES:
            raise ValueError(f"holds {total} bytes, more than {MAX_BYTES}")
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files if key in ("images", "labels", "classes", "mean", "std")}
    except Exception as error:  # NumPy raises whatever a damaged header leads it into
        raise ValueError(f"{path}: not a readable .npz file: {first_line(error)}") from error
    known = {key: arrays.pop(key).tolist() for key in ("classes", "mean", "std") if key in arrays}
    return _arrays(path, arrays, known)


def _safetensors(path: Path) -> ImageSet:
    module = require("safetensors", extra="cli", purpose="reading safetensors")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path}: holds {path.stat().st_size} bytes, more than {MAX_BYTES}")
    try:
        with module.safe_open(path, framework="numpy") as file:
            arrays = {key: file.get_tensor(key) for key in file.keys() if key in ("images", "labels")}  # noqa: SIM118
            metadata = file.metadata() or {}
        known = {key: json.loads(metadata[key]) for key in ("classes", "mean", "std") if key in metadata}
    except Exception as error:
        raise ValueError(f"{path}: not a readable .safetensors file: {first_line(error)}") from error
    return _arrays(path, arrays, known)


def _arrays(path: Path, arrays: dict[str, npt.NDArray[Any]], known: dict[str, Any]) -> ImageSet:
    missing = [key for key in ("images", "labels") if key not in arrays]
    if missing:
        raise ValueError(f"{path}: expected the arrays 'images' and 'labels', found no {missing[0]!r}")
    classes = known.get("classes")
    if classes is not None and not (isinstance(classes, list) and all(isinstance(c, str) for c in classes)):
        raise ValueError(f"{path}: expected 'classes' to be names")
    found = ArraySet(str(path), arrays["images"], arrays["labels"], classes=classes and tuple(classes))
    for key in ("mean", "std"):
        if key in known:
            setattr(found, key, per_channel(path, key, known[key], found.images.shape[1]))
    return found


def per_channel(path: Path, key: str, value: Any, channels: int) -> tuple[float, ...]:
    """A file's mean or standard deviation, one a channel."""
    try:
        return checks.per_channel(key, value, channels)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{path}: {first_line(error)}") from error


def _channels_first(name: str, images: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Images as (N, C, H, W), after a look at their values."""
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise ValueError(f"{name}: expected images (N, C, H, W) or (N, H, W, C), found shape {images.shape}")
    if images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    if images.dtype == np.uint8:
        return images
    if images.dtype not in (np.float32, np.float64, np.float16):
        raise ValueError(f"{name}: expected images in 8 bits or floating, found {images.dtype}")
    if images.size:
        low, high = float(images.min()), float(images.max())
        if not (math.isfinite(low) and math.isfinite(high)) or low < -1e-6 or high > 1 + 1e-6:
            raise ValueError(f"{name}: expected floating images in [0, 1], found {low:g}..{high:g}")
    return images


def _unit(pixels: npt.NDArray[Any]) -> Tensor:
    """Pixels as float32 in [0, 1]."""
    found = torch.from_numpy(pixels)
    return found.float() / 255 if found.dtype == torch.uint8 else found.float().clamp(0, 1)


def described(images: ImageSet) -> str:
    """Say in a line what they are."""
    classes = f", {len(images.classes)} classes" if images.classes else ""
    return f"{images.name}: {len(images)} images{classes}"


__all__ = ["ArraySet", "FileSet", "ImageSet", "decoded", "described", "load"]
