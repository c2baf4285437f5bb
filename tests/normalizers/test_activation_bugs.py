"""The checks against themselves: every planted bug fails one, on the case or cases it shows on.

``python -m normalizers.test_activation_bugs`` (in ``tests/``) prints which checks caught which bug.
"""

import pytest

from normalizers.activation_bugs import BUGS
from normalizers.activation_checks import CASES, Trial, failures
from normalizers.activation_subjects import Subject


def caught_by(bug: Subject, *, stop_at_first: bool) -> list[str]:
    """The checks that fail by an assertion in any case; a crash would not be a catch."""
    found: set[str] = set()
    for case in CASES:
        if case.serves(bug):
            failed = failures(Trial(bug, case))
            assert all(isinstance(error, AssertionError) for error in failed.values()), failed
            found |= set(failed)
            if found and stop_at_first:
                break
    return sorted(found)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.id)
def test_planted_bug_is_caught(bug: Subject) -> None:
    assert caught_by(bug, stop_at_first=True)


if __name__ == "__main__":
    for bug in BUGS:
        print(f"| {bug.id} | {', '.join(caught_by(bug, stop_at_first=False))} |")
