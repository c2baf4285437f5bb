"""A comparison on a terminal: legible at 80 columns and without colour."""

from collections.abc import Mapping

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from renorm.report.cells import Cell
from renorm.report.comparison import Comparison
from renorm.report.legend import legend
from renorm.report.wording import counted, title


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
    words = " ".join(f"{term}: {text}" for term, text in legend(comparison))
    console.print(words, highlight=False, markup=False)
    for condition in comparison.conditions:
        if condition in about:
            console.print(f"{condition}: {about[condition]}", highlight=False, markup=False)
    for message, runs in _alike(comparison.failures).items():
        more = f" and {counted(len(runs) - 1, 'other run')}" if len(runs) > 1 else ""
        console.print(f"failed: {runs[0]}{more}: {message}", highlight=False, markup=False)
    console.print()
    console.print(Text(comparison.conclusion, style="bold"))


def table(comparison: Comparison) -> Table:
    """The cells, a row each, under a row that names the condition."""
    grid = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    grid.add_column("", overflow="fold")  # the widest column gives way first
    for heading in _headings(comparison):
        grid.add_column(Text(heading), justify="right", overflow="fold")
    for condition in comparison.conditions:
        grid.add_row(Text(condition, style="bold"))
        cells = [cell for cell in comparison.cells if cell.condition == condition]
        for place, cell in enumerate(cells, start=1):
            name = Padding(Text(title(cell.normalizer)), (0, 0, 0, 2))
            figures = map(Text, _figures(comparison, cell))
            grid.add_row(name, *figures, end_section=place == len(cells))
    return grid


def _headings(comparison: Comparison) -> list[str]:
    return [
        comparison.unit.metric,
        *(["lead"] if comparison.differences else []),
        *(["gap"] if comparison.gapped else []),
        *(["time"] if comparison.timed else []),
        *(["lr"] if comparison.lrs_differ else []),
        "runs",
    ]


def _figures(comparison: Comparison, cell: Cell) -> list[str]:
    unit, lead = comparison.unit, comparison.lead(cell)
    figures = [unit.figure(cell.score)]
    if comparison.differences:
        figures.append("" if lead is None else unit.figure(lead.points, signed=True))
    if comparison.gapped:
        figures.append(unit.figure(cell.gap))
    if comparison.timed:
        figures.append("-" if cell.time is None else f"{cell.time:.2f}")
    if comparison.lrs_differ:
        figures.append(", ".join(f"{lr:g}" for lr in cell.lrs))
    return [*figures, f"{cell.finished}/{cell.wanted}"]


def _alike(failures: Mapping[str, str]) -> dict[str, list[str]]:
    """The runs that failed with each message."""
    runs: dict[str, list[str]] = {}
    for run, message in failures.items():
        runs.setdefault(message, []).append(run)
    return runs


def _absent(cells: tuple[Cell, ...]) -> str:
    """The runs that are in no figure, cell by cell; empty if there are none."""
    return "; ".join(
        f"{cell.condition}, {title(cell.normalizer)}: {cell.absent}"
        for cell in cells
        if cell.absent
    )
