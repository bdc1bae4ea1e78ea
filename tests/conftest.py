"""Fixtures shared by the tests."""

from __future__ import annotations

import os

# Several test processes share the cores: threads that wait must not spin. Read when torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch

# Triton decides when it is imported whether its interpreter runs the kernels on the CPU.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# On a machine with a GPU Triton takes no CPU tensors: test_gpu.py tests it there.
BACKENDS = ("reference", "native", *(() if torch.cuda.is_available() else ("triton",)))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)
