"""Every conformance case on every backend, at the tolerances that come with the cases."""

from __future__ import annotations

import pytest
import torch
from conformance import Case, gain_of, of_kind
from torch import Tensor

from sdsgsm_fast import Attack, Gradient, Occlusion, decision_domain, ops


def worst(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found.double() - expected.double()).abs().max()) if found.numel() else 0.0


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("case", of_kind("update"), ids=repr)
def test_update(case: Case, backend: str, in_place: bool) -> None:
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


@pytest.mark.parametrize("case", of_kind("window_mean"), ids=repr)
def test_window_mean(case: Case, backend: str) -> None:
    c = case.config
    patch, stride = tuple(c["patch"]), tuple(c["stride"])
    scores = case.inputs["scores"]
    found = ops.window_mean(scores, c["height"], c["width"], patch=patch, stride=stride, backend=backend)
    assert worst(found, case.expected["map"]) <= case.atol
    grid = scores.unflatten(1, (c["rows"], c["cols"]))
    again = ops.window_mean(grid, c["height"], c["width"], patch=patch, stride=stride, backend=backend)
    assert torch.equal(found, again)


@pytest.mark.parametrize("case", of_kind("domain"), ids=repr)
def test_domain(case: Case) -> None:
    found = decision_domain(case.inputs["map"], **case.config)
    assert worst(found, case.expected["domain"]) <= case.atol


def domain_of(config: dict[str, object]) -> Occlusion | Gradient | None:
    rule = {key: config[key] for key in ("rule", "coverage", "threshold")}
    if config["domain"] == "none":
        return None
    if config["domain"] == "gradient":
        return Gradient(**rule)
    patch, stride, fill = (tuple(config[key]) for key in ("patch", "stride", "fill"))
    return Occlusion(patch=patch, stride=stride, fill=fill, score=config["score"], **rule)


@pytest.mark.parametrize("case", of_kind("attack"), ids=repr)
def test_attack(case: Case, backend: str) -> None:
    given, c = case.inputs, case.config

    def model(x: Tensor) -> Tensor:
        hidden = torch.tanh(x.flatten(1) @ given["W1"].T + given["b1"])
        return hidden @ given["W2"].T + given["b2"]

    attack = Attack(
        model, domain=domain_of(c), gain=gain_of(c), backend=backend,
        **{key: c[key] for key in ("eps", "alpha", "steps", "background", "relax", "decay")},
        normalize=c["normalize"], early_stop=c["early_stop"],
    )  # fmt: skip
    result = attack.run(given["images"], given["labels"], target=given.get("target"))
    expected = case.expected
    for name in ("success", "skipped", "updates"):
        assert torch.equal(getattr(result, name), expected[name]), name
    assert worst(result.adv, expected["adv"]) <= case.atol
    assert worst(result.domain, expected["domain"]) <= case.atol
    if expected["S"].numel():
        assert result.scores is not None
        assert worst(result.scores.flatten(1), expected["S"]) <= case.atol
    else:
        assert result.scores is None
