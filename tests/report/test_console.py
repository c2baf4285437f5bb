import io

from rich.console import Console

from renorm.report.comparison import compare
from renorm.report.console import show
from report.constructed import diverged, finished, wanted


def shown(colour: bool = False) -> str:
    runs = wanted("batch_norm slow_batch_norm", "iid two_classes", seeds=3)
    done = [finished(one, 0.123 + one.seed / 5, 0.456) for one in runs[:-2]]
    comparison = compare(runs, [*done, diverged(runs[-2])], {runs[-1]: "OSError: [red]no[/red]"})
    out = io.StringIO()
    system = "truecolor" if colour else None
    console = Console(file=out, width=80, force_terminal=colour, color_system=system)
    show(comparison, console, {"iid": "at random", "other": "not shown"})
    return out.getvalue()


def test_fits_80_columns_and_needs_no_colour() -> None:
    text = shown()
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    assert "…" not in text
    assert "…" not in shown(colour=True)
    assert "\x1b" in shown(colour=True)


def test_rows_name_the_condition_once_and_hold_the_figures() -> None:
    rows = [line.split() for line in shown().splitlines()]
    first = next(row for row in rows if row[:3] == ["iid", "batch", "norm"])
    assert first[3:] == ["32.3", "±", "49.7", "77.9", "±", "49.7", "45.6", "±", "0.0", "3/3"]
    assert [row[0] for row in rows if row].count("two_classes") == 1


def test_what_has_no_figure_is_said() -> None:
    text = " ".join(shown().split())
    absent = "two_classes, batch norm: 1 diverged; two_classes, slow batch norm: 1 failed."
    assert f"Runs in no figure: {absent}" in text
    assert text.count("2/3") == 2
    assert "failed: slow_batch_norm, two_classes, seed 2: OSError: [red]no[/red]" in text


def test_legend_and_conditions_explain_the_columns() -> None:
    text = " ".join(shown().split())
    assert "% of test images in eval mode" in text
    assert "iid: at random" in text
    assert "not shown" not in text


def test_a_cell_without_any_run_is_a_dash() -> None:
    out = io.StringIO()
    show(compare(wanted("batch_norm"), []), Console(file=out, width=80), {})
    row = next(line for line in out.getvalue().splitlines() if "batch norm" in line)
    assert row.split() == ["iid", "batch", "norm", "-", "-", "-", "0/3"]
    assert "Runs in no figure: iid, batch norm: 3 missing." in out.getvalue()
