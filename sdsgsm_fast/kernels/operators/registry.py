"""Registers operators with PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...common.windows import Windows

_LIBRARY = torch.library.Library("sdsgsm_fast", "FRAGMENT")


def register(name: str, schema: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Define an operator and return it."""
    _LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    # Results are constants to autograd, also of arguments that require gradients.
    _LIBRARY.impl(name, torch.library.fallthrough_kernel, "Autograd")
    torch.library.register_fake(f"sdsgsm_fast::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.sdsgsm_fast, name).default


def grid(height: int, width: int, patch: Sequence[int], stride: Sequence[int]) -> Windows:
    """The windows over images of a size."""
    return Windows.over(height, width, (patch[0], patch[1]), (stride[0], stride[1]))


def empty(images: Tensor, shape: tuple[int, ...], dtype: torch.dtype, last: bool) -> Tensor:
    """A result to be filled, channels_last if `last`."""
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device=images.device, memory_format=layout)
