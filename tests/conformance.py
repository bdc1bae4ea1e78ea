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

from sdsgsm_fast import Attack, Gradient, Occlusion, gradients, ops

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


def load_cases(name: str) -> list[Case]:
    """Read every case of a pair of files; arrays are never unpickled."""
    arrays = np.load(DATA / f"{name}.npz", allow_pickle=False)

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
        for case in json.loads((DATA / f"{name}.json").read_text())
    ]


CASES = [*load_cases("cases"), *load_cases("family")]


def of_kind(kind: str) -> list[Case]:
    """Return the cases of a kind, at least one."""
    found = [case for case in CASES if case.kind == kind]
    assert found, f"no conformance case of kind {kind}"
    return found


def gain_of(config: dict[str, Any]) -> float:
    """The gain; "inf" means sign."""
    return math.inf if config["gain"] == "inf" else float(config["gain"])


def worst(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found.double() - expected.double()).abs().max()) if found.numel() else 0.0


def check_update(case: Case, backend: str, in_place: bool) -> None:
    given = {name: value.clone() for name, value in case.inputs.items()}
    adv, momentum = (ops.update_ if in_place else ops.update)(
        given["adv"], given["images"], given["grad"], given["domain"],
        eps=given["eps"], alpha=given["alpha"], background=given["background"],
        active=given["active"], momentum=given["momentum"], gain=gain_of(case.config),
        decay=case.config["decay"], bounds=(case.config["lo"], case.config["hi"]),
        sign=case.config["sign"], normalize=case.config["normalize"], backend=backend,
    )  # fmt: skip
    assert worst(adv, case.expected["adv"]) <= case.atol
    scale = float(case.expected["momentum"].abs().max())
    assert momentum is not None
    assert worst(momentum, case.expected["momentum"]) <= case.momentum_rtol * scale
    overwritten = {"adv", "momentum"} if in_place else set()
    for name, value in case.inputs.items():
        assert (name in overwritten) or torch.equal(given[name], value)
    assert (adv is given["adv"]) == in_place
    assert (momentum is given["momentum"]) == in_place


def check_window_mean(case: Case, backend: str) -> None:
    c = case.config
    patch, stride = tuple(c["patch"]), tuple(c["stride"])
    scores = case.inputs["scores"]
    found = ops.window_mean(scores, c["height"], c["width"], patch=patch, stride=stride, backend=backend)
    assert worst(found, case.expected["map"]) <= case.atol
    grid = scores.unflatten(1, (c["rows"], c["cols"]))
    again = ops.window_mean(grid, c["height"], c["width"], patch=patch, stride=stride, backend=backend)
    assert torch.equal(found, again)


def domain_of(config: dict[str, object]) -> Occlusion | Gradient | None:
    rule = {key: config[key] for key in ("rule", "coverage", "threshold")}
    if config["domain"] == "none":
        return None
    if config["domain"] == "gradient":
        return Gradient(**rule)
    patch, stride, fill = (tuple(config[key]) for key in ("patch", "stride", "fill"))
    return Occlusion(patch=patch, stride=stride, fill=fill, score=config["score"], **rule)


def extras_of(config: dict[str, Any]) -> dict[str, Any]:
    """How a case of the family takes its gradient."""
    extras: list[gradients.Extra] = []
    if config["lookahead"]:
        extras.append(gradients.LookAhead())
    if config["scales"] > 1:
        extras.append(gradients.Scales(config["scales"]))
    if config["kernel"]:
        extras.append(gradients.Kernel(*config["kernel"]))
    return {"gradient": extras, "moments": gradients.AdaBelief() if config["adabelief"] else None}


def check_attack(case: Case, backend: str) -> None:
    """An attack's case; those of the family have no score, fill and rule, which are the defaults."""
    given, c = case.inputs, case.config
    if case.kind == "family":
        same = {"rule": "top", "threshold": 0.5, "fill": [0.0], "score": "prob", "normalize": "mean_abs"}
        c = {**same, **c}

    def model(x: Tensor) -> Tensor:
        hidden = torch.tanh(x.flatten(1) @ given["W1"].T + given["b1"])
        return hidden @ given["W2"].T + given["b2"]

    attack = Attack(
        model, domain=domain_of(c), gain=gain_of(c), backend=backend,
        **{key: c[key] for key in ("eps", "alpha", "steps", "background", "relax", "decay")},
        normalize=c["normalize"], early_stop=c["early_stop"],
        # On a GPU the search would be in bfloat16; the cases are float32's.
        precision="float32" if given["images"].is_cuda else "auto",
        **(extras_of(c) if case.kind == "family" else {}),
    )  # fmt: skip
    result = attack.run(given["images"], given["labels"], target=given.get("target"))
    expected = case.expected
    for name in ("success", "skipped", "updates"):
        assert torch.equal(getattr(result, name), expected[name]), name
    assert worst(result.adv, expected["adv"]) <= case.atol
    assert worst(result.domain, expected["domain"]) <= case.atol
    if case.kind == "family":
        return
    if expected["S"].numel():
        assert result.scores is not None
        assert worst(result.scores.flatten(1), expected["S"]) <= case.atol
    else:
        assert result.scores is None
