"""On nets that learned digits, the fix that helps is found, and where none helps none is."""

import pytest
import torch
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
from renorm.lab.isolation import isolated


@pytest.fixture(autouse=True)
def _one_thread():
    with isolated(0):
        yield


def tried(case: Case, seed: int = 0) -> Trials:
    model, batches = case(seed)
    return try_fixes(model, batches, loss, seeds=4, steps=60)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("case", "first"),
    [(stale, {"calibrate"}), (of_two, {"batch_renorm"}), (one_class, {"frozen"}),
     (two_classes, {"frozen"}), (tuned_by_two, {"batch_renorm", "frozen"})],
)
def test_the_fix_that_cures_comes_first(case: Case, first: set[str], seed: int) -> None:
    found = tried(case, seed)
    for t in found:
        from renorm.doctor.trying import gain
        print(case.__name__, seed, t.fix, gain(t), t in found.helpful)
    assert found[0].fix in first


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_nothing_helps_a_healthy_model(seed: int) -> None:
    found = tried(healthy, seed)
    for t in found:
        from renorm.doctor.trying import gain
        print(seed, t.fix, gain(t))
    assert found.helpful == ()

@pytest.mark.parametrize("seed", [0, 1])
def test_keep(seed: int) -> None:
    found = tried(keep_rate, seed)
    for t in found:
        from renorm.doctor.trying import gain
        print('keep', seed, t.fix, gain(t), t in found.helpful)
