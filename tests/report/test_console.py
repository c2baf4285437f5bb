import io
from dataclasses import replace

from rich.console import Console

from renorm.report.comparison import Comparison, compare
from renorm.report.console import show
from report.constructed import diverged, failed, finished, wanted
from report.whole import grid, plain


def printed(comparison: Comparison, colour: bool = False, **about: str) -> str:
    out = io.StringIO()
    system = "truecolor" if colour else None
    console = Console(file=out, width=80, force_terminal=colour, color_system=system)
    show(comparison, console, about)
    return out.getvalue()


def mixed() -> Comparison:
    runs = wanted("batch_norm slow_batch_norm", "iid two_classes", seeds=3)
    done = [finished(one, 0.123 + one.seed / 5, 0.456) for one in runs[:-2]]
    return compare(runs, [*done, diverged(runs[-2]), failed(runs[-1], "OSError: [red]no[/red]")])


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_fits_80_columns_and_needs_no_colour() -> None:
    text = printed(mixed())
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    assert "…" not in text
    coloured = printed(mixed(), colour=True)
    assert "…" not in coloured
    assert "\x1b" in coloured


def test_every_column_at_once_fits_80_columns() -> None:
    records = [
        replace(one, specification=replace(one.specification, lr=0.0333))
        if one.specification.normalizer == "group_norm"
        else one
        for one in grid(3)
    ]
    text = printed(compare([one.specification for one in records], records))
    assert max(map(len, text.splitlines())) <= 80
    assert ["accuracy", "lead", "gap", "time", "lr", "runs"] in rows(text)
    row = next(row for row in rows(text) if row[:2] == ["batch", "renorm"])
    assert row[-3:] == ["1.20", "0.1", "3/3"]


def test_a_long_name_is_wrapped_and_no_figure_is() -> None:
    name = "batch_renorm(backward='moving', backward_momentum=0.05)"
    runs = wanted("batch_norm batch_renorm", "iid", seeds=3)
    runs += tuple(replace(run, normalizer=name) for run in runs if run.normalizer == "batch_norm")
    text = printed(compare(runs, [finished(one, 0.123 + one.seed / 5, 0.456) for one in runs]))
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert "backward_momentum=0.05" in text
    row = next(row for row in rows(text) if row[1:2] == ["renorm(backward='moving',"])
    assert row.count("±") == 3
    assert row[-1] == "3/3"


def test_figures_too_wide_for_a_row_are_wrapped_not_cut() -> None:
    runs = wanted("batch_norm batch_renorm cross_iteration", seeds=2)
    done = [
        replace(
            plain(one, -123456.7 * (2 * one.seed - 1)),
            train_mode_score=1.0,
            eval_mode_score=1234567.0 * one.seed,
            step_seconds=1.0,
        )
        for one in runs
    ]
    text = printed(compare(runs, done))
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text


def test_a_condition_is_a_row_of_its_own_and_rows_hold_the_figures() -> None:
    got = rows(printed(mixed()))
    assert got.count(["iid"]) == got.count(["two_classes"]) == 1
    first = next(row for row in got if row[:2] == ["batch", "norm"])
    assert first[2:] == ["32.3", "±", "49.7", "+0.0", "±", "0.0", "45.6", "±", "0.0", "3/3"]
    subject = next(row for row in got if row[:3] == ["slow", "batch", "norm"])
    assert subject[3:] == ["32.3", "±", "49.7", "45.6", "±", "0.0", "3/3"]


def test_what_has_no_figure_is_said() -> None:
    text = " ".join(printed(mixed()).split())
    absent = "two_classes, batch norm: 1 diverged; two_classes, slow batch norm: 1 failed."
    assert f"Runs in no figure: {absent}" in text
    assert text.count("2/3") == 2
    assert "failed: slow_batch_norm, two_classes, seed 2: OSError: [red]no[/red]" in text


def test_legend_and_conditions_explain_the_columns() -> None:
    text = " ".join(printed(mixed(), iid="at random", other="not shown").split())
    assert "accuracy: after training, in eval mode, in %." in text
    assert "lead: of slow batch norm over the row's, paired by seed." in text
    assert "time:" not in text
    assert "lr:" not in text
    assert "iid: at random" in text
    assert "not shown" not in text


def test_another_metric_is_named_and_has_no_gap() -> None:
    runs = wanted("batch_norm", seeds=2)
    text = " ".join(printed(compare(runs, [plain(one, -20.5) for one in runs])).split())
    assert "return runs" in text
    assert "-20.50 ± 0.00 2/2" in text
    assert "return: after training, in eval mode. ±" in text


def test_a_cell_without_any_run_is_a_dash() -> None:
    text = printed(compare(wanted("batch_norm"), []))
    row = next(row for row in rows(text) if row[:2] == ["batch", "norm"])
    assert row == ["batch", "norm", "-", "0/3"]
    assert "Runs in no figure: iid, batch norm: 3 missing." in text


def test_failures_alike_are_told_once() -> None:
    runs = wanted("batch_norm batch_renorm", "iid", seeds=2)
    errors = ["OSError: full", "OSError: full", "ValueError: no", "OSError: full"]
    text = printed(compare(runs, map(failed, runs, errors)))
    assert f"failed: {runs[0]} and 2 other runs: OSError: full" in text
    assert f"failed: {runs[2]}: ValueError: no" in text
    assert text.count("OSError") == 1
