"""Every check on every activation-based normalizer and case that it takes."""

import pytest

from normalizers.activation_checks import CASES, Case, Trial, failures
from normalizers.activation_subjects import SUBJECTS, Subject

GRID = [
    pytest.param(subject, case, id=f"{subject.id}-{case.id}")
    for subject in SUBJECTS
    for case in CASES
    if case.serves(subject)
]


@pytest.mark.parametrize(("subject", "case"), GRID)
def test_checks(subject: Subject, case: Case) -> None:
    """All checks, each of which fails by itself: which, is the note of the error."""
    failed = failures(Trial(subject, case))
    for name, error in failed.items():
        error.add_note(f"This is the check {name}.")
    if failed:
        raise ExceptionGroup(f"{', '.join(failed)} failed", list(failed.values()))
