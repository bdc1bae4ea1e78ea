"""Versions and hardware that a figure depends on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import numpy as np
import torch

from .version import package_version


def machine() -> dict[str, str | int]:
    """Describe this machine and its software, ready for a table or JSON."""
    return {
        "sdsgsm-fast": package_version(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "cpu": _cpu_name(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
