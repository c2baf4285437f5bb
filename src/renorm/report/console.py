"""A comparison on a terminal: legible at 80 columns and without colour."""

from collections.abc import Mapping

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from renorm.report.comparison import Cell, Comparison, in_points, title
from renorm.report.statistics import Estimate

LEGEND = (
    "accuracy: % of test images in eval mode. train mode: % of test batches composed like the "
    "training batches, by their own statistics. gap: that less eval mode on the same images. "
    "± is Student's 95 % interval over seeds."
)


def show(comparison: Comparison, console: Console, about: Mapping[str, str]) -> None:
    """Print the table, its legend, what each condition is, failures, and the conclusion.

    Args:
        comparison: what to show.
        console: where to.
        about: condition -> one line about it.
    """
    console.print(table(comparison))
    console.print()
    absent = _absent(comparison.cells)
    if absent:
        console.print(f"Runs in no figure: {absent}.", highlight=False, markup=False)
    console.print(LEGEND, highlight=False)
    for condition in dict.fromkeys(cell.condition for cell in comparison.cells):
        if condition in about:
            console.print(f"{condition}: {about[condition]}", highlight=False, markup=False)
    for run, message in comparison.failures.items():
        console.print(f"failed: {run}: {message}", highlight=False, markup=False)
    console.print()
    console.print(Text(comparison.conclusion, style="bold"))


def table(comparison: Comparison) -> Table:
    """The cells, a row each; a condition is named in its first row."""
    grid = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    grid.add_column("condition", no_wrap=True)
    grid.add_column("normalizer", no_wrap=True)
    for heading in ("accuracy", "train mode", "gap"):
        grid.add_column(heading, justify="right", no_wrap=True)
    grid.add_column("runs", justify="right", no_wrap=True)
    previous = None
    for cell in comparison.cells:
        if previous not in (None, cell.condition):
            grid.add_section()
        grid.add_row(
            "" if cell.condition == previous else cell.condition,
            title(cell.normalizer),
            _figure(cell.accuracy),
            _figure(cell.train_mode),
            _figure(cell.gap),
            f"{cell.finished}/{cell.wanted}",
        )
        previous = cell.condition
    return grid


def _figure(value: Estimate | None) -> str:
    return "-" if value is None else in_points(value)


def _absent(cells: tuple[Cell, ...]) -> str:
    """The runs that are in no figure, cell by cell; empty if there are none."""
    parts = []
    for cell in cells:
        counts = {"diverged": cell.diverged, "failed": cell.failed, "missing": cell.missing}
        words = [f"{count} {word}" for word, count in counts.items() if count]
        if words:
            parts.append(f"{cell.condition}, {title(cell.normalizer)}: {', '.join(words)}")
    return "; ".join(parts)
