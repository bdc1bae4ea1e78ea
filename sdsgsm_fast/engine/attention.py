"""Attention as a step runs it: by a kernel of our own on the CPU where sequences are short."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..kernels import native
from ..kernels.backends import choose
from ..model.precision import has_amx

LONGEST = 4096  # keys; measured up to 4096
FEWEST = 6  # queries; for fewer the keys are not worth laying out


class Attention:
    """Computes `scaled_dot_product_attention`; takes its arguments.

    PyTorch's own runs at a quarter to a third of what a core can do in float32, and in bfloat16
    without AMX at less.

    Parameters
    ----------
    backend
        Whose kernels may compute it, as in `occlusion_scores`.
    """

    def __init__(self, backend: str) -> None:
        self.backend = backend

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        **settings: Any,
    ) -> Tensor:
        """softmax(scale·q·kᵀ + mask)·v, (…, N, V); differentiable."""
        inputs = (query, key, value)
        masked = attn_mask is not None or is_causal
        if not masked and dropout_p == 0.0 and not any(settings.values()) and self._takes(*inputs):
            return self._by_kernel(*inputs, scale)
        # PyTorch's takes 1.4 times as long in bfloat16 without AMX.
        slow = query.is_cpu and query.dtype == torch.bfloat16 and not has_amx()
        dtype = torch.float32 if slow else query.dtype
        if attn_mask is not None and attn_mask.is_floating_point():
            attn_mask = attn_mask.to(dtype)
        out: Tensor = torch.ops.aten.scaled_dot_product_attention.default(
            *(x.to(dtype) for x in inputs), attn_mask, dropout_p, is_causal, scale=scale, **settings
        )
        return out.to(query.dtype)

    def _takes(self, query: Tensor, key: Tensor, value: Tensor) -> bool:
        """Whether the kernel computes this, and faster."""
        dtype, tensors = query.dtype, (query, key, value)
        known = dtype == torch.float32 or (dtype == torch.bfloat16 and not has_amx())
        if not known or not query.is_cpu or choose(self.backend, query) is not native:
            return False
        if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
            return False
        alike = dtype == key.dtype == value.dtype and query.ndim == 4
        alike = alike and query.shape[:2] == key.shape[:2] == value.shape[:2]
        alike = alike and key.shape[2] == value.shape[2] and query.shape[3] == key.shape[3]
        pays = alike and query.shape[2] >= FEWEST and key.shape[2] <= LONGEST
        return pays and all(x.numel() for x in tensors)

    def _by_kernel(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        scale = 1 / math.sqrt(query.shape[3]) if scale is None else scale
        batch, heads, count, _ = query.shape
        out = query.new_empty((batch, count, heads, value.shape[3]))
        q, k, v = (_dense(x) for x in (query, key, value))
        native.attention(out, q, k, v, scale)
        return out.transpose(1, 2)


def _dense(x: Tensor) -> Tensor:
    """With the values of a token together."""
    return x if x.stride(-1) == 1 else x.contiguous()
