from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from renorm.errors import ArgumentError, RecordError
from renorm.lab import pool
from renorm.lab.experiment import Execute, Grid, Progress, complete
from renorm.lab.pool import Site
from renorm.lab.store import Store
from renorm.report.records import Record, Specification
from report.constructed import failed, finished

SMALL = Grid.of(normalizers=("batch_norm", "batch_renorm"), conditions=("iid",), seeds=2, steps=10)


class Runs:
    """Stands for training: instant records, and a list of what was run."""

    def __init__(self) -> None:
        self.done: list[Specification] = []
        self.stop_at: int | None = None
        self.fail_at: int | None = None

    def __call__(self, specification: Specification, data: Path | None = None) -> Record:
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
    all_runs = Grid.of().specifications()
    assert len(set(all_runs)) == 27
    assert [one.seed for one in all_runs] == [0] * 9 + [1] * 9 + [2] * 9
    assert {one.normalizer for one in all_runs} == {"batch_norm", "batch_renorm", "group_norm"}
    assert {one.condition for one in all_runs} == {"iid", "microbatch", "clustered"}


def test_everything_but_normalizer_condition_and_seed_is_shared() -> None:
    rest = {replace(one, normalizer="", condition="", seed=0) for one in Grid.of().specifications()}
    assert rest == {Specification("digits", "convnet", "", "", 0, 1000, 0.1, 32, 4)}


def test_names_are_forgiving_about_hyphens_and_repetition() -> None:
    grid = Grid.of(normalizers=("batch-renorm", "batch_renorm"), conditions=(" iid",))
    assert (grid.normalizers, grid.conditions) == (("batch_renorm",), ("iid",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalizers": ("batchnorm",)}, "no normalizer 'batchnorm'. Did you mean 'batch_norm'"),
        ({"normalizers": ("zzz",)}, "no normalizer 'zzz'. There are batch_norm, batch_renorm, "),
        ({"normalizers": ()}, "At least one normalizer is needed; there are batch_norm, "),
        ({"conditions": ("idd",)}, "no condition 'idd'. Did you mean 'iid'? There are iid, mic"),
        ({"task": "digit"}, "no task 'digit'. Did you mean 'digits'"),
        ({"seeds": 0}, "at least 1 (an interval needs 2), got 0"),
        ({"seeds": -3}, "got -3"),
        ({"steps": 0}, "at least 10, got 0"),
        ({"lr": 0.0}, "above 0 and finite, got 0.0"),
        ({"lr": float("inf")}, "above 0 and finite, got inf"),
        ({"lr": float("nan")}, "above 0 and finite, got nan"),
        ({"model": "resnet"}, "no model 'resnet'"),
        ({"search_seeds": 0}, "at least 1, got 0"),
        ({"ranks": 0}, "at least 1, got 0"),
        ({"rates": (0.1, -1.0)}, "above 0 and finite, got -1.0"),
        ({"task": "nowhere.py:Mine"}, "no file nowhere.py"),
        ({"task": "no.such.module:Mine"}, "There is no module no.such.module"),
        ({"batch_size": 31}, "a batch of 31 and groups of 4"),
    ],
)
def test_a_grid_refuses_what_it_cannot_run(changes: dict, message: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        Grid.of(**changes)
    assert message in str(caught.value)


def test_about_names_the_sizes() -> None:
    assert Grid.of(batch_size=64, group_size=8).about() == {
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


def test_a_failing_run_is_marked_and_tried_again(runs: Runs, store: Store) -> None:
    runs.fail_at = 1
    result = complete(SMALL, store)
    broken = result.records[SMALL.specifications()[1]]
    assert str(broken.error).rstrip().endswith("OSError: disk on fire")
    assert store.read()[0] == result.records
    assert sum(record.error is None for record in result.records.values()) == 3
    assert all(record.error is None for record in complete(SMALL, store).records.values())
    assert len(runs.done) == 5


def scores(*by_rate: tuple[float, float | None]) -> Execute:
    def execute(
        specifications: Sequence[Specification], site: Site
    ) -> Generator[Record, None, None]:
        for one in specifications:
            score = dict(by_rate)[one.lr] if one.split == "validation" else 0.5
            bonus = 0.01 * one.lr * (one.normalizer == "batch_renorm")
            yield failed(one) if score is None else finished(one, score + bonus)

    return execute


def test_a_search_gives_each_normalizer_its_own_rate(store: Store) -> None:
    grid = replace(SMALL, rates=(0.4, 0.1, 0.2), search_seeds=2)
    assert len(grid.search()) == 12
    assert {one.split for one in grid.search()} == {"validation"}
    assert {one.split for one in grid.specifications()} == {"test"}
    seen: list[Progress] = []
    result = complete(grid, store, None, seen.append, scores((0.1, 0.6), (0.2, 0.6), (0.4, None)))
    assert {(one.normalizer, one.lr) for one in result.wanted} == {
        ("batch_norm", 0.1),
        ("batch_renorm", 0.2),
    }
    assert set(result.wanted) <= set(result.records)
    assert len(result.records) == 16
    assert (seen[-1].done, seen[-1].total, seen[-1].seconds_left) == (16, 16, 0.0)


def test_a_search_goes_on_where_it_was_and_keeps_the_records_of_its_grid(store: Store) -> None:
    grid = replace(SMALL, rates=(0.1, 0.2))
    execute = scores((0.1, 0.6), (0.2, 0.5))
    first = complete(grid, store, execute=execute)
    again = complete(grid, store, execute=lambda *_: pytest.fail("ran"))
    assert again.records == first.records
    plain = complete(SMALL, store, execute=execute)
    assert {one.split for one in plain.records} == {"test"}


def test_two_grids_on_one_store_at_a_time_are_refused(store: Store, runs: Runs) -> None:
    with store.writing(), pytest.raises(RecordError, match="Another process is writing"):
        complete(SMALL, Store(store.path))
    assert runs.done == []
    complete(SMALL, store)
    with store.writing():  # nothing to write, so nothing to wait for
        assert len(complete(SMALL, Store(store.path)).records) == 4


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
    complete(replace(SMALL, seeds=3), store, None, seen.append, clock=lambda: next(ticks))
    assert [one.done for one in seen] == [2, 3, 4, 5, 6]
    assert {one.total for one in seen} == {6}
    assert [one.seconds_left for one in seen] == [None, None, 6.0, 3.0, 0.0]
    assert seen[0].latest is None
    assert isinstance(seen[-1].latest, Record)


def test_progress_hears_of_failures(runs: Runs, store: Store) -> None:
    runs.fail_at = 0
    seen: list[Progress] = []
    complete(SMALL, store, progress=seen.append)
    assert seen[1].latest is not None
    assert seen[1].latest.error is not None


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        # more than the test images, fewer than the training images
        (replace(SMALL, batch_size=1000), "got a batch size of 1000"),
        (Grid.of(conditions=("clustered",), batch_size=100, group_size=50), "smallest has 4"),
        (Grid.of(conditions=("two_classes",), batch_size=9, group_size=3), "multiple of 2 classes"),
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


def test_the_default_grid_is_the_one_the_documentation_describes() -> None:
    grid = Grid.of()
    assert grid.normalizers == ("batch_norm", "batch_renorm", "group_norm")
    assert grid.conditions == ("iid", "microbatch", "clustered")
    assert (grid.seeds, grid.steps, grid.batch_size, grid.group_size) == (3, 1000, 32, 4)
    assert (grid.task.name, grid.task.model, grid.lr) == ("digits", "convnet", 0.1)
