"""The conformance cases: inputs and expected outputs of an independent implementation."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Case:
    """One case: its settings, input arrays and expected arrays."""

    name: str
    kind: str
    config: dict[str, Any]
    inputs: dict[str, Tensor]
    expected: dict[str, Tensor]
    atol: float
    momentum_rtol: float

    def __repr__(self) -> str:
        return self.name

    def to(self, device: str) -> Case:
        """The same case with its tensors on a device."""
        inputs = {name: value.to(device) for name, value in self.inputs.items()}
        expected = {name: value.to(device) for name, value in self.expected.items()}
        return replace(self, inputs=inputs, expected=expected)


def load_cases() -> list[Case]:
    """Read every case; arrays are never unpickled."""
    arrays = np.load(DATA / "cases.npz", allow_pickle=False)

    def tensors(name: str, side: str, keys: list[str]) -> dict[str, Tensor]:
        return {key: torch.from_numpy(arrays[f"{name}.{side}.{key}"]) for key in keys}

    return [
        Case(
            name=case["name"],
            kind=case["kind"],
            config=case["config"],
            inputs=tensors(case["name"], "in", case["inputs"]),
            expected=tensors(case["name"], "out", case["expected"]),
            atol=case["atol"],
            momentum_rtol=case.get("momentum_rtol", 0.0),
        )
        for case in json.loads((DATA / "cases.json").read_text())
    ]


CASES = load_cases()


def of_kind(kind: str) -> list[Case]:
    """Return the cases of a kind, at least one."""
    found = [case for case in CASES if case.kind == kind]
    assert found, f"no conformance case of kind {kind}"
    return found


def gain_of(config: dict[str, Any]) -> float:
    """The gain; "inf" means sign."""
    return math.inf if config["gain"] == "inf" else float(config["gain"])
