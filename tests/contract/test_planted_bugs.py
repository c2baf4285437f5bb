"""The battery against itself: it accepts a plain right layer and fails every planted bug.

``python -m contract.test_planted_bugs`` (in ``tests/``) prints which checks caught which bug.
"""

import pytest

from contract.checks import CHECKS, failures
from contract.trial import Trial
from support import planted, planted_activated
from support.cases import CASES, EPILOGUES
from support.subjects import Subject

PLAIN = [planted.planted(planted.Plain),
         planted_activated.planted(planted_activated.PlainActivated)]  # fmt: skip
BUGS = [planted.planted(bug) for bug in planted.BUGS] + [
    planted_activated.planted(bug) for bug in planted_activated.BUGS
]


def caught_by(subject: Subject, *, stop_at_first: bool) -> list[str]:
    """The checks that fail on this subject in any case, in their order."""
    found: set[str] = set()
    for case in CASES + EPILOGUES:
        left = [check for check in CHECKS if check.id not in found]
        found |= set(failures(Trial(subject, case), left))
        if found and stop_at_first:
            break
    return [check.id for check in CHECKS if check.id in found]


@pytest.mark.parametrize("plain", PLAIN, ids=lambda subject: subject.id)
def test_a_plain_layer_passes(plain: Subject) -> None:
    assert caught_by(plain, stop_at_first=False) == []


@pytest.mark.parametrize("bug", BUGS, ids=lambda subject: subject.id)
def test_planted_bug_is_caught(bug: Subject) -> None:
    assert caught_by(bug, stop_at_first=True)


if __name__ == "__main__":
    for bug in BUGS:
        print(f"| {bug.id} | {', '.join(caught_by(bug, stop_at_first=False))} |")
