"""Every check on every layer, kernel and case it applies to."""

import pytest

from contract.checks import CHECKS, Check
from support.cases import CASES, EPILOGUES, Case, inputs
from support.subjects import SUBJECTS, Subject

GRID = [
    pytest.param(subject, check, case, id=f"{check.id}-{subject.id}-{case.id}")
    for check in CHECKS
    for subject in SUBJECTS
    for case in CASES + EPILOGUES
    if check.when(subject, case)
]


@pytest.mark.parametrize(("subject", "check", "case"), GRID)
def test_contract(subject: Subject, check: Check, case: Case) -> None:
    if subject.missing:
        pytest.skip(subject.missing)
    check.run(subject, case)


def test_case_ids_are_unique() -> None:
    ids = [case.id for case in CASES + EPILOGUES]
    assert len(set(ids)) == len(ids)


def test_every_check_applies_to_our_layers() -> None:
    idle = [c.id for c in CHECKS if not any(c.when(SUBJECTS[0], case) for case in CASES)]
    assert not idle


def test_cases_are_reproducible() -> None:
    def tensors(case: Case) -> list:
        return [inputs(case).x, inputs(case).dy, inputs(case).running_var]

    for case in CASES[:5]:
        assert all((a == b).all() for a, b in zip(tensors(case), tensors(case), strict=True))
