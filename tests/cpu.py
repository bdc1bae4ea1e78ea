"""What the CPU that runs the tests can do, asked of PyTorch rather than of the library."""

from __future__ import annotations

from functools import cache

import torch


@cache
def onednn_in_bfloat16() -> bool:
    """Whether oneDNN computes in bfloat16 here: it takes AVX-512, or a cap that leaves that on.

    ``ONEDNN_MAX_CPU_ISA=AVX2``, set before torch is imported, makes any CPU one without.
    """
    x = torch.ones(2, 4, dtype=torch.bfloat16)
    try:
        weight = torch.ops.mkldnn._reorder_linear_weight(torch.ones(3, 4, dtype=torch.bfloat16))
        found = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    except RuntimeError:
        return False
    return bool((found == 4).all())
