"""On nets that learned digits, the fix that helps is found, and where none helps none is."""

from collections.abc import Iterator

import pytest
from digit_cases import (
    Case,
    healthy,
    keep_rate,
    loss,
    of_two,
    one_class,
    stale,
    tuned_by_two,
    two_classes,
)

from renorm.doctor.trying import AS_IT_IS, DEFAULT, Trials, try_fixes
from renorm.lab.data import digits
from renorm.lab.isolation import isolated


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with isolated(0):
        yield


def tried(case: Case, seed: int) -> Trials:
    model, batches = case(seed)
    data = digits()
    unseen = [(data.test_images, data.test_labels)]
    return try_fixes(model, batches, loss, held_out=unseen, seeds=4)


# Those to the left were measured to be as good as each other; more than one is a cure. Frozen
# layers train what eval mode runs, so in a short probe they win where batches are composed.
@pytest.mark.parametrize(
    ("case", "first", "helpful", "useless"),
    [
        (stale, {"calibrate"}, {"batch_renorm"}, {"longer_ema", "cross_iteration"}),
        (keep_rate, {"calibrate", "longer_ema"}, set(), set()),
        (of_two, {"batch_renorm"}, {"frozen", "cross_iteration"}, {"longer_ema"}),
        (one_class, {"frozen"}, set(), {"calibrate", "longer_ema"}),
        (two_classes, {"frozen"}, {"batch_renorm"}, {"calibrate", "longer_ema"}),
        (tuned_by_two, {"frozen", "batch_renorm"}, set(), {"longer_ema"}),
    ],
)
def test_the_fix_that_cures_comes_first(
    case: Case, first: set[str], helpful: set[str], useless: set[str]
) -> None:
    found = tried(case, 0)
    helps = {trial.fix for trial in found.helpful}
    assert found[0].fix in first
    assert helps >= helpful | ({found[0].fix} if len(first) == 1 else set())
    assert not helps & useless
    assert {trial.fix for trial in found} == {AS_IT_IS, *DEFAULT}


@pytest.mark.parametrize("seed", [0, 3])
def test_nothing_helps_a_healthy_model(seed: int) -> None:
    assert tried(healthy, seed).helpful == ()
