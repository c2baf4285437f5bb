from dataclasses import replace

import pytest

from renorm.errors import ArgumentError
from renorm.report.comparison import compare
from renorm.report.statistics import Estimate
from report.constructed import PLAIN, diverged, failed, finished, wanted
from report.whole import plain, tried


def test_figures_of_a_cell_are_percentages() -> None:
    runs = wanted("batch_norm", seeds=2)
    cell = compare(runs, [finished(runs[0], 0.5, 0.25), finished(runs[1], 0.5, 0.25)]).cells[0]
    assert cell.score == Estimate(50, 0, 2)
    assert cell.train_mode == Estimate(75, 0, 2)
    assert cell.gap == Estimate(25, 0, 2)
    assert (cell.wanted, cell.finished, cell.absent) == (2, 2, "")


def test_figures_of_another_metric_are_in_its_own_units() -> None:
    runs = wanted("batch_norm batch_renorm", seeds=2)
    scores = [-200.0, -100.0, -220.0, -110.0]
    got = compare(runs, [plain(one, score) for one, score in zip(runs, scores, strict=True)])
    assert got.cells[0].score is not None
    assert got.cells[0].score.mean == -210
    assert got.differences[0].points is not None
    assert got.differences[0].points.mean == 105
    assert (got.unit.metric, got.unit.percent, got.unit.decimals) == ("return", False, 1)
    assert (got.gapped, got.timed) == (False, False)


def test_order_is_that_asked_for_and_the_subject_is_held_against_each() -> None:
    runs = wanted("group_norm batch_norm batch_renorm", "iid clustered")
    got = compare(runs, [])
    assert got.conditions == ("iid", "clustered")
    assert got.normalizers == ("group_norm", "batch_norm", "batch_renorm")
    assert [(one.condition, one.normalizer, one.against) for one in got.differences] == [
        ("iid", "batch_renorm", "batch_norm"),
        ("iid", "batch_renorm", "group_norm"),
        ("clustered", "batch_renorm", "batch_norm"),
        ("clustered", "batch_renorm", "group_norm"),
    ]
    leads = [got.lead(cell) for cell in got.cells[:3]]
    assert [one and one.against for one in leads] == ["group_norm", "batch_norm", None]


def test_runs_without_a_figure_are_counted_and_never_dropped() -> None:
    runs = wanted("batch_norm batch_renorm", seeds=4)
    done = [finished(one, 0.5 + one.seed / 100) for one in runs if one.normalizer == "batch_norm"]
    ours = [one for one in runs if one.normalizer == "batch_renorm"]
    done += [finished(ours[0], 0.9), diverged(ours[1]), failed(ours[2], "ValueError: no")]
    got = compare(runs, done)
    cell = got.cells[1]
    assert (cell.finished, cell.diverged, cell.failed, cell.missing) == (1, 1, 1, 1)
    assert cell.absent == "1 diverged, 1 failed, 1 missing"
    assert not got.complete
    assert got.failures == {"batch_renorm, iid, seed 2": "ValueError: no"}


@pytest.mark.parametrize(
    ("make", "complete"),
    [(diverged, True), (failed, False), (None, False)],
    ids=["diverged", "failed", "absent"],
)
def test_divergence_is_a_result_failure_and_absence_are_none(make, complete) -> None:
    runs = wanted("batch_norm", seeds=1)
    assert compare(runs, [make(one) for one in runs] if make else []).complete is complete


def test_the_time_of_a_step_is_the_median_ratio_over_common_seeds() -> None:
    runs = wanted("batch_norm batch_renorm", seeds=4)
    seconds = {
        ("batch_norm", 0): 2.0,
        ("batch_renorm", 0): 3.0,
        ("batch_norm", 1): 1.0,
        ("batch_renorm", 1): 1.1,
        ("batch_norm", 2): 1.0,
        ("batch_renorm", 2): 9.0,
        ("batch_renorm", 3): 50.0,
    }
    records = [
        replace(finished(one, 0.5), step_seconds=seconds.get((one.normalizer, one.seed)))
        for one in runs
    ]
    got = compare(runs, records)
    assert [cell.time for cell in got.cells] == [1.0, 1.5]
    assert got.timed


def test_normalizers_may_differ_in_learning_rate_and_are_paired_by_seed() -> None:
    runs = wanted("batch_norm batch_renorm", seeds=2)
    runs = [replace(one, lr=0.3) if one.normalizer == "batch_renorm" else one for one in runs]
    levels = {"batch_norm": 0.5, "batch_renorm": 0.7}
    got = compare(runs, [finished(one, levels[one.normalizer]) for one in runs])
    assert got.lrs_differ
    assert [cell.lrs for cell in got.cells] == [(0.1,), (0.3,)]
    assert got.differences[0].points is not None
    assert got.differences[0].points.mean == pytest.approx(20)


def test_other_records_are_left_aside() -> None:
    runs = wanted("batch_norm batch_renorm", seeds=2)
    done = [finished(one, 0.5) for one in runs]
    strangers = [finished(replace(one, lr=0.2), 0.1) for one in runs]
    search = [tried(one, 0.1, 0.9) for one in runs]
    also_wanted = [*runs, *(one.specification for one in search)]
    assert compare(also_wanted, strangers + search + done) == compare(runs, done)


def test_nothing_wanted_is_refused() -> None:
    with pytest.raises(ArgumentError, match="at least one run"):
        compare([], [])


def test_two_runs_of_one_place_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"got two: .*lr=0\.1.*lr=0\.2"):
        compare([PLAIN, replace(PLAIN, lr=0.2)], [])


def test_two_metrics_are_refused_but_a_failed_run_has_none() -> None:
    runs = wanted("batch_norm", seeds=2)
    with pytest.raises(ArgumentError, match=r"accuracy \(fractions\), return \(plain\)"):
        compare(runs, [finished(runs[0], 0.5), plain(runs[1], 3.0)])
    got = compare(runs, [failed(runs[0]), plain(runs[1], 3.0)])
    assert got.unit.metric == "return"
