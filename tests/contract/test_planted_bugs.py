"""The battery against itself: it accepts a plain right layer and fails every planted bug.

``python -m contract.test_planted_bugs`` (in ``tests/``) prints which checks caught which bug.
"""

import pytest

from contract.checks import CHECKS
from support.cases import CASES
from support.planted import BUGS, Plain, planted
from support.subjects import Subject


def caught_by(subject: Subject, *, stop_at_first: bool) -> list[str]:
    """The checks that fail on this subject, each on the first case that shows it."""
    found = []
    for check in CHECKS:
        for case in CASES:
            if not check.when(subject, case):
                continue
            try:
                check.run(subject, case)
            except Exception:  # a crash is a catch too
                found.append(check.id)
                break
        if found and stop_at_first:
            break
    return found


def test_the_plain_layer_passes() -> None:
    assert caught_by(planted(Plain), stop_at_first=False) == []


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_planted_bug_is_caught(bug: type[Plain]) -> None:
    assert caught_by(planted(bug), stop_at_first=True)


if __name__ == "__main__":
    for bug in BUGS:
        print(f"| {bug.__name__} | {', '.join(caught_by(planted(bug), stop_at_first=False))} |")
