from dataclasses import replace
from pathlib import Path

import pytest

from renorm.errors import ArgumentError, RecordError
from renorm.lab import experiment, pool
from renorm.lab.experiment import Grid, Progress, complete
from renorm.lab.pool import Failure
from renorm.lab.store import Store
from renorm.report.records import Record, Specification
from report.constructed import finished

SMALL = Grid(("batch_norm", "batch_renorm"), ("iid",), seeds=2, steps=10)


class Runs:
    """Stands for training: instant records, and a list of what was run."""

    def __init__(self) -> None:
        self.done: list[Specification] = []
        self.stop_at: int | None = None
        self.fail_at: int | None = None

    def __call__(self, specification: Specification) -> Record:
        if len(self.done) == self.stop_at:
            raise KeyboardInterrupt
        self.done.append(specification)
        if len(self.done) - 1 == self.fail_at:
            raise OSError("disk on fire")
        return finished(specification, 0.5)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    runs = Runs()
    monkeypatch.setattr(pool, "run", runs)
    return runs


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs.jsonl")


def test_a_grid_is_every_combination_seed_by_seed() -> None:
    all_runs = Grid().specifications()
    assert len(set(all_runs)) == 27
    assert [one.seed for one in all_runs] == [0] * 9 + [1] * 9 + [2] * 9
    assert {one.normalizer for one in all_runs} == {"batch_norm", "batch_renorm", "group_norm"}
    assert {one.condition for one in all_runs} == {"iid", "microbatch", "clustered"}


def test_everything_but_normalizer_condition_and_seed_is_shared() -> None:
    rest = {replace(one, normalizer="", condition="", seed=0) for one in Grid().specifications()}
    assert rest == {Specification("digits", "", "", 0, 1000, 0.1, 32, 4)}


def test_names_are_forgiving_about_hyphens_and_repetition() -> None:
    grid = Grid(("batch-renorm", "batch_renorm"), (" iid",))
    assert (grid.normalizers, grid.conditions) == (("batch_renorm",), ("iid",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalizers": ("batchnorm",)}, "no normalizer 'batchnorm'. Did you mean 'batch_norm'?"),
        ({"normalizers": ("zzz",)}, "no normalizer 'zzz'. There are batch_norm, batch_renorm, "),
        ({"normalizers": ()}, "At least one normalizer is needed; there are batch_norm, "),
        ({"conditions": ("idd",)}, "no condition 'idd'. Did you mean 'iid'? There are iid, mic"),
        ({"task": "digit"}, "no task 'digit'. Did you mean 'digits'?"),
        ({"seeds": 0}, "at least 1 (an interval needs 2), got 0"),
        ({"seeds": -3}, "got -3"),
        ({"steps": 0}, "at least 10, got 0"),
        ({"lr": 0.0}, "above 0, got 0.0"),
        ({"lr": float("inf")}, "above 0, got inf"),
        ({"lr": float("nan")}, "above 0, got nan"),
        ({"batch_size": 31}, "a batch of 31 and groups of 4"),
    ],
)
def test_a_grid_refuses_what_it_cannot_run(changes: dict, message: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        Grid(**changes)
    assert message in str(caught.value)


def test_about_names_the_sizes() -> None:
    assert Grid(batch_size=64, group_size=8).about() == {
        "iid": "batches of 64 at random, one group",
        "microbatch": "batches of 64 at random, statistics per 8 examples",
        "clustered": "statistics per 8 examples of ONE class; groups take classes in turn",
    }


def test_a_second_call_does_the_missing_runs_only(runs: Runs, store: Store) -> None:
    complete(SMALL, store)
    assert runs.done == list(SMALL.specifications())
    more = replace(SMALL, seeds=3)
    result = complete(more, store)
    assert runs.done[4:] == [one for one in more.specifications() if one.seed == 2]
    assert set(result.records) == set(more.specifications())
    assert complete(more, store).records == result.records
    assert len(runs.done) == 6


def test_other_settings_do_not_share_records(runs: Runs, store: Store) -> None:
    complete(SMALL, store)
    result = complete(replace(SMALL, lr=0.2), store)
    assert len(runs.done) == 8
    assert {one.lr for one in result.records} == {0.2}


def test_an_interruption_keeps_what_is_finished(runs: Runs, store: Store) -> None:
    runs.stop_at = 3
    result = complete(SMALL, store)
    assert result.interrupted
    assert list(result.records) == list(SMALL.specifications()[:3])
    assert store.read()[0] == result.records
    runs.stop_at = None
    assert not complete(SMALL, store).interrupted
    assert len(runs.done) == 4


def test_a_failing_run_ends_itself_alone_and_is_tried_again(runs: Runs, store: Store) -> None:
    runs.fail_at = 1
    result = complete(SMALL, store)
    assert result.failures == {SMALL.specifications()[1]: "OSError: disk on fire"}
    assert len(result.records) == len(store.read()[0]) == 3
    assert complete(SMALL, store).failures == {}
    assert len(runs.done) == 5


def test_a_torn_line_is_reported_and_its_run_done_again(runs: Runs, store: Store) -> None:
    complete(SMALL, store)
    store.path.write_bytes(store.path.read_bytes()[:-20])
    result = complete(SMALL, store)
    assert result.warning is not None
    assert len(runs.done) == 5
    assert store.read() == (result.records, None)


def test_progress_counts_all_and_measures_after_the_first(runs: Runs, store: Store) -> None:
    complete(replace(SMALL, seeds=1), store)
    seen: list[Progress] = []
    ticks = iter([100.0, 103.0, 106.0])
    complete(replace(SMALL, seeds=3), store, 1, seen.append, lambda: next(ticks))
    assert [one.done for one in seen] == [2, 3, 4, 5, 6]
    assert {one.total for one in seen} == {6}
    assert [one.seconds_left for one in seen] == [None, None, 6.0, 3.0, 0.0]
    assert seen[0].latest is None
    assert isinstance(seen[-1].latest, Record)


def test_progress_hears_of_failures(runs: Runs, store: Store) -> None:
    runs.fail_at = 0
    seen: list[Progress] = []
    complete(SMALL, store, progress=seen.append)
    assert isinstance(seen[1].latest, Failure)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        # more than the test images, fewer than the training images
        (replace(SMALL, batch_size=1000), "got a batch size of 1000"),
        (Grid(conditions=("clustered",), batch_size=100, group_size=50), "smallest has 4"),
        (Grid(conditions=("two_classes",), batch_size=9, group_size=3), "multiple of 2 classes"),
    ],
)
def test_sizes_that_do_not_fit_the_data_are_found_before_the_work(
    grid: Grid, message: str, runs: Runs, store: Store
) -> None:
    with pytest.raises(ArgumentError, match=message):
        complete(grid, store)
    assert runs.done == []
    assert not store.path.exists()


def test_an_unusable_store_is_found_before_the_work(runs: Runs, tmp_path: Path) -> None:
    with pytest.raises(RecordError):
        complete(SMALL, Store(tmp_path / "no" / "runs.jsonl"))
    assert runs.done == []


def test_workers_below_one_are_refused(store: Store) -> None:
    with pytest.raises(ArgumentError, match="at least 1, got 0"):
        complete(SMALL, store, workers=0)


def test_the_default_grid_is_the_one_the_documentation_describes() -> None:
    assert experiment.DEFAULT_CONDITIONS == ("iid", "microbatch", "clustered")
    assert (Grid.seeds, Grid.batch_size, Grid.group_size) == (3, 32, 4)
