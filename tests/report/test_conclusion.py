from collections.abc import Callable
from dataclasses import replace

import pytest

from renorm.report.comparison import Comparison, compare
from report.constructed import PLAIN, diverged, failed, finished, wanted
from report.whole import plain

Values = dict[tuple[str, str], list[float]]


def concluded(values: Values) -> tuple[str, ...]:
    """Scores in percent by condition and normalizer, a seed each."""
    conditions = dict.fromkeys(condition for condition, _ in values)
    normalizers = dict.fromkeys(normalizer for _, normalizer in values)
    seeds = max(map(len, values.values()))
    runs = wanted(" ".join(normalizers), " ".join(conditions), seeds)
    done = [
        finished(one, mine[one.seed] / 100)
        for one in runs
        if one.seed < len(mine := values.get((one.condition, one.normalizer), []))
    ]
    return compare(runs, done).sentences


def against(ours: list[float], theirs: list[float]) -> tuple[str, ...]:
    return concluded({("iid", "batch_norm"): theirs, ("iid", "batch_renorm"): ours})


@pytest.mark.parametrize(
    ("ours", "theirs", "sentence"),
    [
        (
            [90.0, 92.0, 94.0],
            [60.0, 61.0, 62.0],
            # differences 30, 31, 32: 31 ± 4.30265 / sqrt(3)
            "Batch renorm beats batch norm by 31.0 ± 2.5 points in iid.",
        ),
        (
            [60.0, 61.0, 62.0],
            [90.0, 92.0, 94.0],
            "Batch norm beats batch renorm by 31.0 ± 2.5 points in iid.",
        ),
        (
            [90.0, 92.0, 91.0],
            [91.0, 91.0, 91.0],
            "No difference seen between batch renorm and batch norm in iid (+0.0 ± 2.5 points).",
        ),
        (
            [97.0],
            [60.0],
            "Batch renorm less batch norm is +37.0 points in iid, from 1 seed and so without an "
            "interval.",
        ),
        (
            # a clear difference is not rounded to nothing
            [50.03, 50.02, 50.03],
            [50.0, 49.99, 50.0],
            "Batch renorm beats batch norm by 0.03 ± 0.00 points in iid.",
        ),
    ],
    ids=["win", "loss", "tie", "one seed", "small"],
)
def test_the_first_sentence(ours: list[float], theirs: list[float], sentence: str) -> None:
    assert against(ours, theirs)[0] == sentence


def test_all_kinds_of_outcome_in_one_sentence_and_who_else_beats_the_subject() -> None:
    got = concluded(
        {
            ("iid", "batch_norm"): [90.0, 91.0, 92.0],
            ("iid", "batch_renorm"): [90.0, 91.0, 92.0],
            ("iid", "group_norm"): [80.0, 80.0, 80.0],
            ("clustered", "batch_norm"): [30.0, 31.0, 32.0],
            ("clustered", "batch_renorm"): [90.0, 91.0, 92.0],
            ("clustered", "group_norm"): [95.0, 96.0, 97.0],
            ("microbatch", "batch_norm"): [50.0, 51.0, 52.0],
            ("microbatch", "batch_renorm"): [60.0, 61.0, 62.0],
            ("mixed", "batch_norm"): [95.0, 96.0, 97.0],
            ("mixed", "batch_renorm"): [90.0, 91.0, 92.0],
            ("few", "batch_norm"): [95.0],
            ("few", "batch_renorm"): [90.0],
            ("none", "batch_renorm"): [90.0],
        }
    )
    assert got[:3] == (
        "Batch renorm beats batch norm by 60.0 ± 0.0 points in clustered and by 10.0 ± 0.0 points "
        "in microbatch; batch norm beats batch renorm by 5.0 ± 0.0 points in mixed; no difference "
        "seen in iid (+0.0 ± 0.0 points); batch renorm less batch norm is -5.0 points in few, from "
        "1 seed and so without an interval; no finished pair in none.",
        "Judged by accuracy, over 1 to 3 paired seeds.",
        "Group norm beats batch renorm by 5.0 ± 0.0 points in clustered.",
    )


def test_one_seed_is_told_to_be_too_few() -> None:
    assert against([97.0], [60.0])[1:] == (
        "Judged by accuracy, over 1 paired seed.",
        "One seed says nothing about spread: give at least 3 for intervals.",
    )


def test_two_seeds_and_how_many_would_tell() -> None:
    # differences 1 and 3: mean 2, s sqrt(2); t(3) s / sqrt(4) = 2.25 > 2 > 1.76 = t(4) s / sqrt(5)
    assert against([51.0, 53.0], [50.0, 50.0])[2] == (
        "Two seeds give very wide intervals (Student's t is 12.7, of five seeds 2.8); were mean "
        "and spread as seen, it would take about 5 seeds in iid to tell."
    )


@pytest.mark.parametrize("ours", [[51.0, 51.0], [49.0, 51.0]], ids=["clear", "no mean"])
def test_two_seeds_without_a_number_to_name(ours: list[float]) -> None:
    assert against(ours, [50.0, 50.0])[2] == (
        "Two seeds give very wide intervals (Student's t is 12.7, of five seeds 2.8)."
    )


def test_another_metric_has_no_points() -> None:
    runs = wanted("batch_norm batch_renorm")
    scores = {"batch_norm": [-310.0, -300.0, -290.0], "batch_renorm": [-110.0, -99.0, -91.0]}
    done = [plain(one, scores[one.normalizer][one.seed]) for one in runs]
    # differences 200, 201, 199
    assert compare(runs, done).conclusion == (
        "Batch renorm beats batch norm by 200.0 ± 2.5 in iid. "
        "Judged by return, over 3 paired seeds."
    )


def test_what_is_in_no_mean_is_told() -> None:
    runs = wanted("batch_norm batch_renorm", seeds=3)
    done = [finished(one, 0.5) for one in runs[:3]] + [diverged(runs[3]), failed(runs[4])]
    assert compare(runs, done).sentences[-2:] == (
        "Diverged, and so in no mean: batch renorm in iid (1 of 3).",
        "Of 6 runs: 1 failed, 1 missing.",
    )


@pytest.mark.parametrize(
    ("make", "rest"),
    [
        (lambda runs: [], ("Of 4 runs: 4 missing.",)),
        (lambda runs: [failed(one) for one in runs], ("Of 4 runs: 4 failed.",)),
        (
            lambda runs: [diverged(one) for one in runs],
            (
                "Diverged, and so in no mean: batch norm in iid (2 of 2) and batch renorm in iid "
                "(2 of 2).",
            ),
        ),
    ],
    ids=["missing", "failed", "diverged"],
)
def test_without_any_pair_nothing_is_concluded(
    make: Callable[[list], list], rest: tuple[str, ...]
) -> None:
    runs = wanted("batch_norm batch_renorm", seeds=2)
    first = "Nothing to conclude: no finished pair of batch renorm and batch norm."
    assert compare(runs, make(runs)).sentences == (first, *rest)


def test_stand_ins_for_subject_and_baseline() -> None:
    got = concluded({("iid", "group_norm"): [50.0, 50.0], ("iid", "none"): [40.0, 40.0]})
    assert got[0] == "Group norm beats none by 10.0 ± 0.0 points in iid."


def test_one_normalizer_has_nothing_to_be_compared_with() -> None:
    assert compare([PLAIN], []).sentences == (
        "Only batch norm was run: there is nothing to compare it with.",
        "Of 1 run: 1 missing.",
    )


def test_the_text_is_the_sentences() -> None:
    runs = [replace(PLAIN, seed=seed) for seed in range(2)]
    got: Comparison = compare(runs, [])
    assert got.conclusion == " ".join(got.sentences)
