"""Every conformance case on every backend, at the tolerances that come with the cases."""

from __future__ import annotations

import pytest
from conformance import Case, check_attack, check_update, check_window_mean, of_kind, worst

from sdsgsm_fast import decision_domain


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("case", of_kind("update"), ids=repr)
def test_update(case: Case, backend: str, in_place: bool) -> None:
    check_update(case, backend, in_place)


@pytest.mark.parametrize("case", of_kind("window_mean"), ids=repr)
def test_window_mean(case: Case, backend: str) -> None:
    check_window_mean(case, backend)


@pytest.mark.parametrize("case", of_kind("domain"), ids=repr)
def test_domain(case: Case) -> None:
    found = decision_domain(case.inputs["map"], **case.config)
    assert worst(found, case.expected["domain"]) <= case.atol


@pytest.mark.parametrize("case", of_kind("attack") + of_kind("family"), ids=repr)
def test_attack(case: Case, backend: str) -> None:
    check_attack(case, backend)
