"""A comparison on a terminal: legible at 80 columns and without colour."""

from collections.abc import Mapping

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from renorm.report.cells import Cell
from renorm.report.comparison import Comparison
from renorm.report.wording import title


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
    console.print(legend(comparison), highlight=False, markup=False)
    for condition in comparison.conditions:
        if condition in about:
            console.print(f"{condition}: {about[condition]}", highlight=False, markup=False)
    for run, message in comparison.failures.items():
        console.print(f"failed: {run}: {message}", highlight=False, markup=False)
    console.print()
    console.print(Text(comparison.conclusion, style="bold"))


def table(comparison: Comparison) -> Table:
    """The cells, a row each, under a row that names the condition."""
    grid = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    grid.add_column("", no_wrap=True)
    for heading in _headings(comparison):
        grid.add_column(Text(heading), justify="right")
    for condition in comparison.conditions:
        grid.add_row(Text(condition, style="bold"))
        cells = [cell for cell in comparison.cells if cell.condition == condition]
        for place, cell in enumerate(cells, start=1):
            row = [f"  {title(cell.normalizer)}", *_figures(comparison, cell)]
            grid.add_row(*map(Text, row), end_section=place == len(cells))
    return grid


def legend(comparison: Comparison) -> str:
    """What the columns hold, in words."""
    subject, baseline = title(comparison.subject), title(comparison.baseline)
    unit = ", in %" if comparison.unit.percent else ""
    parts = [f"{comparison.unit.metric}: after training, in eval mode{unit}."]
    if comparison.differences:
        parts.append(f"lead: of {subject} over the row's, paired by seed.")
    if _gapped(comparison):
        parts.append(
            "gap: test batches put together like the training batches, in train mode, by their "
            "own statistics, less the same in eval mode."
        )
    if _timed(comparison):
        parts.append(f"time: of a step, {baseline} = 1.")
    if comparison.lrs_differ:
        parts.append("lr: learning rate.")
    parts.append("± is Student's 95 % interval over seeds.")
    return " ".join(parts)


def _headings(comparison: Comparison) -> list[str]:
    return [
        comparison.unit.metric,
        *(["lead"] if comparison.differences else []),
        *(["gap"] if _gapped(comparison) else []),
        *(["time"] if _timed(comparison) else []),
        *(["lr"] if comparison.lrs_differ else []),
        "runs",
    ]


def _figures(comparison: Comparison, cell: Cell) -> list[str]:
    unit, lead = comparison.unit, comparison.lead(cell)
    figures = [unit.figure(cell.score)]
    if comparison.differences:
        figures.append("" if lead is None else unit.figure(lead.points, signed=True))
    if _gapped(comparison):
        figures.append(unit.figure(cell.gap))
    if _timed(comparison):
        figures.append("-" if cell.time is None else f"{cell.time:.2f}")
    if comparison.lrs_differ:
        figures.append(", ".join(f"{lr:g}" for lr in cell.lrs))
    return [*figures, f"{cell.finished}/{cell.wanted}"]


def _timed(comparison: Comparison) -> bool:
    return any(cell.time is not None for cell in comparison.cells)


def _gapped(comparison: Comparison) -> bool:
    return any(cell.gap is not None for cell in comparison.cells)


def _absent(cells: tuple[Cell, ...]) -> str:
    """The runs that are in no figure, cell by cell; empty if there are none."""
    return "; ".join(
        f"{cell.condition}, {title(cell.normalizer)}: {cell.absent}" for cell in cells if cell.absent
    )
