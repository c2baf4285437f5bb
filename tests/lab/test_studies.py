from dataclasses import replace
from pathlib import Path

import pytest

from renorm.errors import ArgumentError
from renorm.lab.conditions import CONDITIONS
from renorm.lab.experiment import check_runs, finish
from renorm.lab.normalizers import find
from renorm.lab.papers import SCALES, STUDIES, Study
from renorm.lab.store import Store
from renorm.lab.tasks import TASKS
from renorm.report.claims import Verdict
from renorm.report.records import Record, Specification

EVERY = [(study, scale) for study in STUDIES.values() for scale in SCALES]


@pytest.mark.parametrize(("study", "scale"), EVERY, ids=lambda one: getattr(one, "name", one))
def test_arms_are_runs_of_the_lab(study: Study, scale: str) -> None:
    for run in study.arms(scale).values():
        assert run.seed == 0
        assert run.model in TASKS[run.task].models
        assert find(run.normalizer).name == run.normalizer
        CONDITIONS[run.condition].build(run.batch_size, run.group_size)


def imagined(run: Specification) -> Record:
    return Record(run, score=0.5, train_mode_score=0.5, curve=((1, 0.5),))


@pytest.mark.parametrize(("study", "scale"), EVERY, ids=lambda one: getattr(one, "name", one))
def test_a_claim_speaks_of_arms_that_are_run(study: Study, scale: str) -> None:
    for claim in study.claims(scale):
        assert claim.evidence.arms
        assert claim.evidence.arms <= study.arms(scale).keys()


@pytest.mark.parametrize("study", STUDIES.values(), ids=lambda study: study.name)
def test_a_study_at_smoke_scale(study: Study, tmp_path: Path) -> None:
    store = Store(tmp_path / "smoke.jsonl")
    wanted = study.specifications("smoke", seeds=1)
    result = finish(wanted, store)
    assert [record.error for record in result.records.values()] == [None] * len(wanted)
    judged = study.judge("smoke", result.records.values())
    # one seed has no interval, so nothing can be visible, but everything is measured
    assert {one.verdict for one in judged} == {Verdict.INVISIBLE}
    assert all(one.ours is not None for one in judged)
    assert not finish(wanted, store, execute=_refused).interrupted


def _refused(missing, site):
    raise AssertionError(f"{len(missing)} runs are done again")
    yield


def test_runs_go_seed_by_seed_and_shared_ones_once() -> None:
    study = STUDIES["batch-renorm"]
    wanted = study.specifications("laptop")
    arms = study.arms("laptop")
    assert [one.seed for one in wanted] == sorted(one.seed for one in wanted)
    assert len(wanted) == len(set(wanted)) == 3 * len(set(arms.values()))


def test_no_seeds_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"at least 1 .* got 0"):
        STUDIES["batch-renorm"].specifications("smoke", 0)


def test_records_of_other_runs_are_left_aside() -> None:
    study = STUDIES["batch-renorm"]
    name, arm = next(iter(study.arms("smoke").items()))
    records = [imagined(replace(arm, seed=4)), imagined(replace(arm, steps=7))]
    runs = study.runs("smoke", records)
    assert list(runs[name]) == [4]
    assert not any(found for other, found in runs.items() if other != name)


def test_what_is_interrupted_is_finished_later(tmp_path: Path) -> None:
    study, store = STUDIES["batch-norm"], Store(tmp_path / "runs.jsonl")
    wanted = study.specifications("smoke", 1)[:4]

    def broken_off(missing, site):
        yield imagined(missing[0])
        yield imagined(missing[1])
        raise KeyboardInterrupt

    def rest(missing, site):
        yield from map(imagined, missing)

    first = finish(wanted, store, execute=broken_off)
    assert first.interrupted
    assert len(first.records) == 2
    done = []
    second = finish(wanted, store, execute=rest, progress=done.append)
    assert not second.interrupted
    assert set(second.records) == set(wanted)
    assert done[0].done == 2
    assert len(store.path.read_text().splitlines()) == 4


def test_sizes_that_do_not_fit_are_refused_before_any_run() -> None:
    run = Specification("digits", "convnet", "batch_norm", "twins", 0, 10, 0.1, 15, 5)
    with pytest.raises(ArgumentError, match=r"two examples of each class.* got 5"):
        check_runs([run], None)
