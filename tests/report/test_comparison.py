from collections.abc import Callable
from dataclasses import replace

import pytest

from renorm.errors import ArgumentError
from renorm.report.comparison import Comparison, compare
from renorm.report.records import Record, Specification
from report.constructed import PLAIN, diverged, finished, wanted

Values = dict[tuple[str, str], list[float]]


def records(runs: list[Specification], values: Values) -> list[Record]:
    return [finished(one, values[one.condition, one.normalizer][one.seed] / 100) for one in runs]


def compared(ours: list[float], theirs: list[float]) -> Comparison:
    runs = wanted("batch_norm batch_renorm", seeds=len(ours))
    values = {("iid", "batch_norm"): theirs, ("iid", "batch_renorm"): ours}
    return compare(runs, records(runs, values))


@pytest.mark.parametrize(
    ("ours", "theirs", "conclusion"),
    [
        (
            [90.0, 92.0, 94.0],
            [60.0, 61.0, 62.0],
            # differences 30, 31, 32: 31 ± 4.30265 / sqrt(3)
            "Batch renorm against batch norm (3 paired seeds): iid: wins by 31.0 ± 2.5 points.",
        ),
        (
            [60.0, 61.0, 62.0],
            [90.0, 92.0, 94.0],
            "Batch renorm against batch norm (3 paired seeds): iid: loses by 31.0 ± 2.5 points.",
        ),
        (
            [90.0, 92.0, 91.0],
            [91.0, 91.0, 91.0],
            "Batch renorm against batch norm (3 paired seeds): "
            "iid: no difference seen (+0.0 ± 2.5 points).",
        ),
        (
            [97.0],
            [60.0],
            "Batch renorm against batch norm (1 seed, so no intervals): iid: +37.0 points.",
        ),
    ],
    ids=["win", "loss", "tie", "one seed"],
)
def test_conclusion(ours: list[float], theirs: list[float], conclusion: str) -> None:
    assert compared(ours, theirs).conclusion == conclusion


def test_figures_of_a_cell_are_percentages() -> None:
    runs = wanted("batch_norm", seeds=2)
    cell = compare(runs, [finished(runs[0], 0.5, 0.25), finished(runs[1], 0.5, 0.25)]).cells[0]
    assert cell.accuracy is not None
    assert cell.train_mode is not None
    assert cell.gap is not None
    assert (cell.accuracy.mean, cell.train_mode.mean, cell.gap.mean) == (50, 75, 25)
    assert (cell.wanted, cell.finished) == (2, 2)


def test_a_third_normalizer_that_beats_the_subject_is_named() -> None:
    runs = wanted("batch_norm batch_renorm group_norm", "iid clustered")
    values = {
        ("iid", "batch_norm"): [90.0, 91.0, 92.0],
        ("iid", "batch_renorm"): [90.0, 91.0, 92.0],
        ("iid", "group_norm"): [80.0, 80.0, 80.0],
        ("clustered", "batch_norm"): [30.0, 31.0, 32.0],
        ("clustered", "batch_renorm"): [90.0, 91.0, 92.0],
        ("clustered", "group_norm"): [95.0, 96.0, 97.0],
    }
    got = compare(runs, records(runs, values))
    assert got.conclusion == (
        "Batch renorm against batch norm (3 paired seeds): iid: no difference seen "
        "(+0.0 ± 0.0 points); clustered: wins by 60.0 ± 0.0 points. "
        "But group norm beats batch renorm: clustered by 5.0 ± 0.0 points."
    )
    assert got.complete
    order = [(cell.condition, cell.normalizer) for cell in got.cells]
    assert order == list(values)
    assert [(one.condition, one.against) for one in got.differences] == [
        ("iid", "batch_norm"),
        ("iid", "group_norm"),
        ("clustered", "batch_norm"),
        ("clustered", "group_norm"),
    ]


def test_runs_without_a_figure_are_counted_and_never_dropped() -> None:
    runs = wanted("batch_norm batch_renorm", seeds=4)
    done = [finished(one, 0.5 + one.seed / 100) for one in runs if one.normalizer == "batch_norm"]
    ours = [one for one in runs if one.normalizer == "batch_renorm"]
    done += [finished(ours[0], 0.9), diverged(ours[1])]
    got = compare(runs, done, {ours[2]: "ValueError: no"})
    cell = got.cells[1]
    assert (cell.finished, cell.diverged, cell.failed, cell.missing) == (1, 1, 1, 1)
    assert not got.complete
    assert got.failures == {"batch_renorm, iid, seed 2": "ValueError: no"}
    assert got.conclusion == (
        "Batch renorm against batch norm (1 seed, so no intervals): iid: +40.0 points. "
        "Of 8 runs: 1 diverged, 1 failed, 1 missing."
    )


def test_divergence_is_a_result_and_leaves_the_grid_complete() -> None:
    runs = wanted("batch_norm", seeds=1)
    assert compare(runs, [diverged(runs[0])]).complete


def test_a_condition_without_a_pair_says_so() -> None:
    runs = wanted("batch_norm batch_renorm", "iid clustered", seeds=1)
    done = [finished(one, 0.5) for one in runs if one.condition == "iid"]
    assert compare(runs, done).conclusion.endswith(
        "iid: +0.0 points; clustered: no finished pair. Of 4 runs: 2 missing."
    )


@pytest.mark.parametrize("make", [lambda runs: [], lambda runs: list(map(diverged, runs))])
def test_without_any_pair_nothing_is_concluded(make: Callable[[list], list]) -> None:
    runs = wanted("batch_norm batch_renorm", seeds=2)
    text = compare(runs, make(runs)).conclusion
    assert text.startswith("Nothing to conclude: no finished pair of batch renorm and batch norm.")
    assert " Of 4 runs: 4 " in text


def test_other_records_are_left_aside() -> None:
    runs = wanted("batch_norm batch_renorm", seeds=2)
    done = [finished(one, 0.5) for one in runs]
    strangers = [finished(replace(one, lr=0.2), 0.1) for one in runs]
    assert compare(runs, strangers + done) == compare(runs, done)


def test_stand_ins_for_subject_and_baseline() -> None:
    runs = wanted("group_norm batch_norm", seeds=2)
    text = compare(runs, [finished(one, 0.5) for one in runs]).conclusion
    assert text.startswith("Batch norm against group norm (2 paired seeds)")


def test_one_normalizer_has_nothing_to_be_compared_with() -> None:
    assert compare([PLAIN], []).conclusion.startswith("Only batch norm was run")


def test_nothing_wanted_is_refused() -> None:
    with pytest.raises(ArgumentError, match="at least one run"):
        compare([], [])
