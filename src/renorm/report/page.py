"""A comparison as one self-contained HTML page."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from renorm.report import skeleton
from renorm.report.cells import Cell, Difference
from renorm.report.charts import charts
from renorm.report.comparison import Comparison
from renorm.report.legend import legend
from renorm.report.merging import describe, setting
from renorm.report.palette import styles
from renorm.report.records import Record, Specification
from renorm.report.search import Searched, searched
from renorm.report.statistics import MOST_SEEDS, seeds_needed
from renorm.report.wording import Unit, counted, last_line, title, unit_for


@dataclass(frozen=True)
class Row:
    """One normalizer under one condition, as text; ``colour`` is of its charts."""

    normalizer: str
    colour: str
    score: str
    lead: str
    needed: str
    train_mode: str
    gap: str
    time: str
    lrs: str
    runs: str
    absent: str


@dataclass(frozen=True)
class Run:
    """One run, as text; ``error`` is a traceback, or None."""

    condition: str
    normalizer: str
    seed: int
    split: str
    lr: str
    score: str
    train_mode: str
    gap: str
    milliseconds: str
    outcome: str
    error: str | None


def write(
    path: Path,
    comparison: Comparison,
    records: Iterable[Record],
    about: Mapping[str, str],
    command: str,
) -> None:
    """Write the page of a comparison to a file; for the arguments see ``render``.

    Raises:
        RecordError: the file cannot be written.
        MissingExtraError: jinja2 or plotly is not installed.
    """
    skeleton.write(path, render(comparison, records, about, command))


def render(
    comparison: Comparison, records: Iterable[Record], about: Mapping[str, str], command: str
) -> str:
    """The page as text; the same arguments give the same text.

    Args:
        comparison: what to show.
        records: of its runs and of the search for their learning rates; others are left aside.
        about: condition -> one line about it.
        command: what made the page, to be typed again.

    Raises:
        MissingExtraError: jinja2 or plotly is not installed.
    """
    records = list(records)
    asked = {one: place for place, one in enumerate(comparison.wanted)}
    scored = [one for one in records if one.specification in asked]
    scored.sort(key=lambda one: asked[one.specification])
    sweep = [one for one in records if _belongs(one, comparison)]
    sweep.sort(key=lambda one: _order(one.specification, comparison))
    drawn = charts(comparison, scored)
    looks = styles(comparison.normalizers)
    return skeleton.render(
        "comparison.html",
        {
            f"{chart.name}-{place}": panel.figure
            for chart in drawn
            for place, panel in enumerate(chart.panels)
        },
        comparison=comparison,
        about=about,
        command=command,
        shared=describe(comparison.wanted),
        groups=[
            (
                condition,
                [_row(comparison, one) for one in comparison.cells if one.condition == condition],
            )
            for condition in comparison.conditions
        ],
        legend=legend(comparison),
        looks=looks,
        charts=drawn,
        searches=searched(sweep),
        tries=_tries,
        used=_used(comparison),
        title=title,
        runs=_runs(comparison.wanted, scored) + _runs([one.specification for one in sweep], sweep),
        environments=environments([*scored, *sweep]),
        counted=counted,
    )


def _belongs(record: Record, comparison: Comparison) -> bool:
    """Whether a record is of the search for the learning rates of this comparison."""
    one, first = record.specification, comparison.wanted[0]
    return (
        one.split == "validation"
        and setting(one) == setting(first)
        and one.condition in comparison.conditions
        and one.normalizer in comparison.normalizers
    )


def _order(one: Specification, comparison: Comparison) -> tuple[int, int, float, int]:
    """By condition and normalizer as in the comparison, then by learning rate and seed."""
    condition = comparison.conditions.index(one.condition)
    return condition, comparison.normalizers.index(one.normalizer), one.lr, one.seed


def _row(comparison: Comparison, cell: Cell) -> Row:
    unit, lead = comparison.unit, comparison.lead(cell)
    return Row(
        title(cell.normalizer),
        styles(comparison.normalizers)[cell.normalizer].colour,
        unit.figure(cell.score),
        "" if lead is None else unit.figure(lead.points, signed=True),
        "" if lead is None else _needed(lead),
        unit.figure(cell.train_mode),
        unit.figure(cell.gap),
        "-" if cell.time is None else f"{cell.time:.2f}",
        _rates(cell.lrs),
        f"{cell.finished}/{cell.wanted}",
        cell.absent,
    )


def _needed(lead: Difference) -> str:
    """Seeds that would tell a difference that these do not; empty where they do."""
    if lead.points is None or lead.points.half_width is None:
        return "-"
    if lead.points.clear:
        return ""
    needed = seeds_needed(lead.points)
    return f"over {MOST_SEEDS:,}" if needed is None else f"about {needed}"


def _used(comparison: Comparison) -> dict[tuple[str, str], str]:
    """Learning rates of the runs compared, by condition and normalizer."""
    return {(cell.condition, cell.normalizer): _rates(cell.lrs) for cell in comparison.cells}


def _rates(lrs: Iterable[float]) -> str:
    return ", ".join(f"{lr:g}" for lr in lrs)


def _tries(one: Searched, unit: Unit) -> list[tuple[str, str]]:
    """(learning rate, what came of it) of a search."""
    return [
        (f"{rate:g}", "diverged or failed" if score is None else unit.number(unit.shown(score)))
        for rate, score in one.scores
    ]


def _runs(wanted: Sequence[Specification], records: Sequence[Record]) -> list[Run]:
    found = {one.specification: one for one in records}
    conditions = list(dict.fromkeys(one.condition for one in wanted))
    ordered = sorted(wanted, key=lambda one: conditions.index(one.condition))
    return [_run(one, found.get(one)) for one in ordered]


def _run(one: Specification, record: Record | None) -> Run:
    record = record or Record(one)
    unit = unit_for(record.metric, record.percent, [] if record.score is None else [record.score])
    score, train_mode, gap = (
        "-" if value is None else unit.number(unit.shown(value))
        for value in (record.score, record.train_mode_score, record.gap)
    )
    seconds = record.step_seconds
    return Run(
        one.condition,
        title(one.normalizer),
        one.seed,
        one.split,
        f"{one.lr:g}",
        score,
        train_mode,
        gap,
        "-" if seconds is None else f"{1000 * seconds:.2f}",
        _outcome(record),
        record.error,
    )


def _outcome(record: Record) -> str:
    if record.error is not None:
        return f"failed: {last_line(record.error)}"
    if record.diverged_at is not None:
        return f"diverged at step {record.diverged_at}"
    return "missing" if record.score is None else "finished"


def environments(records: Sequence[Record]) -> list[tuple[int, list[tuple[str, str]]]]:
    """(how many runs, entries) of each environment, the most frequent first."""
    counts: dict[tuple[tuple[str, str], ...], int] = {}
    for record in records:
        entries = tuple(
            (name, "unknown" if value is None else value)
            for name, value in record.environment.items()
        )
        counts[entries] = counts.get(entries, 0) + 1
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return [(count, list(entries)) for entries, count in ordered]
