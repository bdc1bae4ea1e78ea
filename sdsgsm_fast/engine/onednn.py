"""Whether oneDNN computes products and convolutions on a CPU."""

from __future__ import annotations

import torch


def onednn_enabled() -> bool:
    """Whether PyTorch has oneDNN and may use it."""
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return bool(available and torch.backends.mkldnn.enabled)
