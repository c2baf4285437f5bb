"""A diagnosis on a terminal: legible at 80 columns and without colour, worst first."""

import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from renorm.findings import Finding
from renorm.measure.records import NOT_DENSE, FixTrial, Note, Survey
from renorm.report import diagnosis_wording as wording
from renorm.report import trials
from renorm.report.layer_table import layer_table
from renorm.report.rows import shortened
from renorm.report.wording import counted, listed, title

STYLES = {"error": "bold red", "warning": "bold yellow", "note": "bold blue"}
MOST_LINES = 4  # of a finding
INDENT = "  "
WORST = 3  # layers in the table
COLUMNS = ("values", "gap", "staleness", "noise", "d", "ratio")
LEGEND = (
    "Gap of train to eval mode, in deviations: staleness of running statistics, noise of batches. "
    "d: shift of batch means, ratio: their variance over chance."
)
FIXES = 5
NAME = 26  # letters of a layer's name in the table
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
    opening = wording.opening(survey, findings)
    told = f": {wording.counts(findings)}" if findings else ""
    _print(console, f"{opening}{told}.", "bold")
    _print(console, f"{wording.measured(survey)}. {wording.caveat(survey)}".rstrip())
    console.print()
    for place, one in enumerate(findings, 1):
        console.print(_finding(place, one, width))
    worst = _worst(survey, findings)
    if worst:
        console.print(_layers(survey, worst))
        console.print(Text("\n".join(_wrapped(LEGEND, width, 2, "")), style="dim"))
    found = trials.ranked(survey.of(FixTrial))
    if found:
        _print(console, trials.conclusion(found))
        console.print(_trials(found))
    _print(console, _more(survey, findings, page))


def _print(console: Console, text: str, style: str = "") -> None:
    if text:
        console.print(Text(text, style=style))


def _finding(place: int, finding: Finding, width: int) -> Text:
    """The title, what to do, and the most telling figure where the title leaves a line for it."""
    head = _wrapped(f"{place} {finding.severity.upper()} {finding.title}", width, 2, "")
    advice = _wrapped(f"Do: {finding.advice}", width, 2, INDENT)
    figure = _wrapped(_figure(finding), width, 1, INDENT)
    middle = figure if len(head) + len(advice) < MOST_LINES else []
    text = Text("\n".join([*head, *middle, *advice]))
    start = len(f"{place} ")
    text.stylize(STYLES[finding.severity], start, start + len(finding.severity))
    return text


def _figure(finding: Finding) -> str:
    """The most telling figure, and how many layers there are."""
    figure = ""
    if finding.evidence:
        first = finding.evidence[0]
        (layer,) = shortened([wording.name_of(first.layer)], NAME)
        figure = wording.evidence(replace(first, layer=layer))
    count = counted(len(finding.layers), "layer") if len(finding.layers) > 1 else ""
    text = "; ".join(filter(None, (figure, count)))
    return f"{text[:1].upper()}{text[1:]}"


def _wrapped(text: str, width: int, lines: int, indent: str) -> list[str]:
    """Lines of at most ``width``, all but the first indented."""
    return textwrap.wrap(
        " ".join(text.split()),
        width,
        initial_indent=indent,
        subsequent_indent=INDENT,
        max_lines=lines,
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
    short = shortened([name for name, _ in found.rows], NAME)
    for name, (_, cells) in zip(short, found.rows, strict=True):
        table.add_row(Text(name), *(Text(cells[place]) for place in kept))
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
    left_out = [one for one in survey.of(Note) if one.reason != NOT_DENSE]
    missing = list(dict.fromkeys(title(one.quantity) for one in left_out))
    if missing:
        parts.append(f"Not measured, or in part: {listed(missing)}.")
    if page is not None:
        code = "Code to paste, plots and all figures" if findings else "Plots and all figures"
        parts.append(f"{code}: {page}")
    elif any(one.code for one in findings):
        parts.append("Code to paste: with --html FILE.")
    return " ".join(parts)
