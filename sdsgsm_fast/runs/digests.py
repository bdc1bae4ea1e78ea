"""Digests of a model and of data, by which a run that is resumed knows them again."""

from __future__ import annotations

import hashlib
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor, nn

from ..data.images import ArraySet, FileSet, ImageSet


def model_digest(model: Any) -> str:
    """Of a module's parameters and buffers, by name; of another callable, of its name alone."""
    digest = hashlib.sha256()
    if not isinstance(model, nn.Module):
        digest.update(f"{getattr(model, '__module__', '')}.{getattr(model, '__qualname__', type(model))}".encode())
        return digest.hexdigest()
    tensors = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        _add(digest, name, tensor)
    return digest.hexdigest()


def data_digest(data: ImageSet) -> str:
    """Of images and labels in memory; of files by name, size and label, since reading all would take too long."""
    digest = hashlib.sha256()
    if isinstance(data, ArraySet):
        _add(digest, "images", torch.from_numpy(data.images))
        _add(digest, "labels", torch.from_numpy(data.labels))
    elif isinstance(data, FileSet):
        for entry in data.entries:
            inside = "/".join(PurePath(entry.name).parts[-2:])
            digest.update(f"{inside}\0{entry.label}\0{data.size_of(entry)}\n".encode())
        digest.update(f"size {data.size}".encode())
    else:
        digest.update(f"{data.name}\0{len(data)}".encode())
    return digest.hexdigest()


def _add(digest: Any, name: str, tensor: Tensor) -> None:
    held = tensor.detach().cpu().contiguous()
    digest.update(f"{name}\0{held.dtype}\0{tuple(held.shape)}\0".encode())
    digest.update(held.reshape(-1).view(torch.uint8).numpy().data)
