"""Every check on every layer, kernel and case it applies to."""

import pytest

from contract.checks import CHECKS, failures
from contract.trial import Trial
from support.cases import CASES, EPILOGUES, MOVING, Case, inputs
from support.subjects import SUBJECTS, Subject

GRID = [
    pytest.param(subject, case, id=f"{subject.id}-{case.id}")
    for case in CASES + EPILOGUES + MOVING
    for subject in SUBJECTS
    if any(check.when(subject, case) for check in CHECKS)
]


@pytest.mark.parametrize(("subject", "case"), GRID)
def test_contract(subject: Subject, case: Case) -> None:
    """All checks, each of which fails by itself: which, is the note of the error."""
    if subject.missing:
        pytest.skip(subject.missing)
    failed = failures(Trial(subject, case))
    for name, error in failed.items():
        error.add_note(f"This is the check {name}.")
    if failed:
        raise ExceptionGroup(f"{', '.join(failed)} failed", list(failed.values()))


def test_case_ids_are_unique() -> None:
    ids = [case.id for case in CASES + EPILOGUES + MOVING]
    assert len(set(ids)) == len(ids)


def test_every_check_applies_to_our_layers() -> None:
    idle = [c.id for c in CHECKS if not any(c.when(SUBJECTS[0], case) for case in CASES)]
    assert not idle


def test_cases_are_reproducible() -> None:
    def tensors(case: Case) -> list:
        return [inputs(case).x, inputs(case).dy, inputs(case).running_var]

    for case in CASES[:5]:
        assert all((a == b).all() for a, b in zip(tensors(case), tensors(case), strict=True))
