"""How much of a GPU's memory may be taken, and how much a pass over images takes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from .classifier import Classifier

SHORTAGES = ("unable to find an engine to execute", "STATUS_ALLOC_FAILED", "CUDA out of memory")


def free_bytes(device: torch.device) -> int:
    """Bytes of a GPU that may be taken: those that nobody has, and those that PyTorch holds unused."""
    free: int = torch.cuda.mem_get_info(device)[0]
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def is_shortage(error: RuntimeError) -> bool:
    """Whether an error says that memory was short; cuDNN and cuBLAS say so in words of their own."""
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in SHORTAGES)


@torch.no_grad()
def forward_bytes(classifier: Classifier, images: Tensor) -> int:
    """Estimate the memory of one image's forward pass from one probe, which is not counted.

    The image itself and twice the largest operation: its inputs, its outputs, and as much again for
    a shortcut or a library's scratch space.
    """
    image = classifier.inputs(images[:1])
    with _Operations() as seen:
        classifier.model(image)
    return int(image.numel() * image.element_size() + 2 * seen.largest)


def gradient_bytes(classifier: Classifier, images: Tensor) -> int:
    """Estimate the memory of one image's forward and backward pass in a search; see `forward_bytes`.

    All that the forward pass makes may be kept for the backward pass.
    """
    forwards = classifier.forwards
    with _Operations() as seen:
        classifier.logits_and_leaf(images[:1], search=True)
    classifier.forwards = forwards
    return int(seen.made + 2 * seen.largest)


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches every operation: the most bytes that one has read and written, and all that they made."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.largest = self.made = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = _bytes(result)
        self.made += made
        self.largest = max(self.largest, made + _bytes(args))
        return result


def _bytes(values: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tree_iter(values) if isinstance(t, Tensor))
