"""A diagnosis on a terminal: legible at 80 columns and without colour, worst first."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from renorm.findings import Finding
from renorm.measure.records import FixTrial, Note, Survey
from renorm.report import diagnosis_wording as wording
from renorm.report import trials
from renorm.report.layer_table import layer_table
from renorm.report.rows import shortened
from renorm.report.wording import counted

STYLES = {"error": "bold red", "warning": "bold yellow", "note": "bold blue"}
MOST_LINES = 4  # of a finding
INDENT = "  "
WORST = 4  # layers in the table
COLUMNS = ("values", "gap", "staleness", "noise", "d", "ratio")
FIXES = 5
PLACEHOLDER = " ..."


def show(
    survey: Survey,
    findings: Sequence[Finding],
    console: Console,
    page: Path | None = None,
) -> None:
    """Print the verdict, the findings, the worst layers, and the fixes that were tried.

    Three findings without trials fit a screen of 80 x 24.

    Args:
        survey: what was measured, fixes that were tried included.
        findings: the worst first.
        console: where to.
        page: where the page is, which has the code; None without one.
    """
    width = console.width
    _print(console, wording.verdict(survey, findings), "bold")
    about = f"{wording.measured(survey)}; {wording.counts(findings)}."
    _print(console, " ".join(filter(None, (about, wording.caveat(survey)))))
    for place, one in enumerate(findings, 1):
        console.print(_finding(place, one, width))
    worst = _worst(survey, findings)
    if worst:
        console.print(_layers(survey, worst))
    found = trials.ranked(survey.of(FixTrial))
    if found:
        _print(console, trials.conclusion(found))
        console.print(_trials(found))
    _print(console, _more(survey, findings, page))


def _print(console: Console, text: str, style: str = "") -> None:
    if text:
        console.print(Text(text, style=style))


def _finding(place: int, finding: Finding, width: int) -> Text:
    """The title, the figure that matters most, and what to do, in 2 to 4 lines."""
    title = _wrapped(f"{place} {finding.severity.upper()} {finding.title}", width, 2)
    figure = _wrapped(_figure(finding), width, 1)
    advice = _wrapped(f"Do: {finding.advice}", width, MOST_LINES - len(title) - len(figure))
    text = Text("\n".join([*title, *figure, *advice]))
    start = len(f"{place} ")
    text.stylize(STYLES[finding.severity], start, start + len(finding.severity))
    return text


def _figure(finding: Finding) -> str:
    """The most telling figure, and how many layers there are."""
    figure = wording.evidence(finding.evidence[0]) if finding.evidence else ""
    count = counted(len(finding.layers), "layer") if finding.layers else ""
    text = "; ".join(filter(None, (figure, count)))
    return f"{text[:1].upper()}{text[1:]}"


def _wrapped(text: str, width: int, lines: int) -> list[str]:
    """Lines of at most ``width``, indented but for a first one that begins with a number."""
    first = "" if text[:1].isdigit() else INDENT
    return textwrap.wrap(
        " ".join(text.split()),
        width,
        initial_indent=first,
        subsequent_indent=INDENT,
        max_lines=max(lines, 1),
        placeholder=PLACEHOLDER,
    )


def _worst(survey: Survey, findings: Sequence[Finding]) -> list[str]:
    """The layers that the worst findings name first, each once."""
    layers = set(survey.layers())
    named = [name for one in findings for name in one.layers if name in layers]
    return list(dict.fromkeys(named))[:WORST]


def _layers(survey: Survey, names: Sequence[str]) -> Table:
    found = layer_table(survey, names)
    kept = [place for place, one in enumerate(found.columns) if one.heading in COLUMNS]
    table = _table()
    table.add_column("worst layers", no_wrap=True)
    for place in kept:
        table.add_column(found.columns[place].heading, justify="right", no_wrap=True)
    for name, cells in found.rows:
        table.add_row(Text(shortened(name)), *(Text(cells[place]) for place in kept))
    return table


def _trials(found: Sequence[trials.Ranked]) -> Table:
    table = _table()
    table.add_column("fix")
    for heading in ("gain in loss", "step time"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("outcome")
    for one in found[:FIXES]:
        outcome = one.outcome or ("helps" if one.helps else "")
        cells = (one.trial.fix, trials.gain_of(one), trials.cost_of(one), outcome)
        table.add_row(*map(Text, cells))
    return table


def _table() -> Table:
    return Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)


def _more(survey: Survey, findings: Sequence[Finding], page: Path | None) -> str:
    """Where the code of the advice is, and how much could not be measured."""
    parts = []
    missing = counted(len({one.quantity for one in survey.of(Note)}), "quantity")
    if survey.of(Note):
        parts.append(f"{missing.replace('quantitys', 'quantities')} not measured in full.")
    if page is not None:
        code = "Code to paste, plots and all figures" if findings else "Plots and all figures"
        parts.append(f"{code}: {page}")
    elif any(one.code for one in findings):
        parts.append("Code to paste is on the page that --html FILE writes.")
    return " ".join(parts)
