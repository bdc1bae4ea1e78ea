"""Fixtures shared by the tests."""

from __future__ import annotations

import pytest
import torch

BACKENDS = ("reference", "native")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)
