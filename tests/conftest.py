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

from sdsgsm_fast.model import precision
from sdsgsm_fast.occlusion import scoring


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--isa", help="instruction set of the CPU kernels, one of _native_cpu.isas()")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--isa"):
        from sdsgsm_fast import _native_cpu

        _native_cpu.use_isa(config.getoption("--isa"))


# Networks that test modules make as they are imported are the same in every process.
torch.manual_seed(0)

# On a machine with a GPU Triton takes no CPU tensors: test_gpu.py tests it there.
BACKENDS = ("reference", "native", *(() if torch.cuda.is_available() else ("triton",)))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _searches_are_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the CPU: where bfloat16 would pay, tests ask for it or take `bfloat16_pays`."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    monkeypatch.setattr(precision, "_is_amd", lambda: False)


@pytest.fixture
def bfloat16_pays(_searches_are_in_float32: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, as on an AMD one of these days."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    monkeypatch.setattr(precision, "_is_amd", lambda: True)
    monkeypatch.setattr(scoring, "SURE_GAIN", 1.0)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)
