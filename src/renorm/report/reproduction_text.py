"""A reproduction on a terminal, and as tables of Markdown."""

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from renorm.errors import RecordError
from renorm.report.reproduction import Reproduction
from renorm.report.wording import counted


def show(found: Reproduction, console: Console) -> None:
    """Print the claims with their verdicts, then the arms, then what they took."""
    console.print(Text(found.title, style="bold"))
    console.print(Text(f"{found.source}; scale {found.scale}, {counted(found.seeds, 'seed')}"))
    console.print(Text(f"{found.about} {found.data}".rstrip()))
    console.print()
    console.print(_claims(found))
    console.print()
    console.print(_arms(found))
    console.print()
    if found.metrics:
        console.print(Text(f"Scores: {found.metrics}."))
    notes = [one.claim for one in found.judged if one.claim.note]
    for claim in notes:
        console.print(Text(f"{claim.text}: {claim.note}"))
    console.print(Text(f"{took(found)} {found.summary}", style="bold"))


def took(found: Reproduction) -> str:
    """Processor time in a sentence."""
    return f"{counted(len(found.records), 'run')}, {found.minutes:.1f} minutes of processor time."


def _claims(found: Reproduction) -> Table:
    grid = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in ("claim", "paper", "ours ± 95 %", "verdict"):
        grid.add_column(heading, overflow="fold")
    for one in found.judged:
        grid.add_row(
            Text(one.claim.text), Text(one.claim.paper), Text(one.figure), Text(one.verdict)
        )
    return grid


def _arms(found: Reproduction) -> Table:
    grid = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    grid.add_column("arm", overflow="fold")
    for heading in ("score", "runs", "minutes"):
        grid.add_column(heading, justify="right")
    for arm in found.arms:
        absent = f" ({arm.absent})" if arm.absent else ""
        runs = f"{arm.finished}/{arm.wanted}{absent}"
        grid.add_row(Text(arm.name), Text(arm.score), runs, f"{arm.minutes:.1f}")
    return grid


def markdown(found: Reproduction) -> str:
    """The claims and the arms as two tables of Markdown, below a heading and the command."""
    lines = [
        f"### {found.title}",
        "",
        f"{found.source}. {found.about} {found.data}".rstrip(),
        "",
        f"`{found.command}`: {took(found)} {found.summary}",
        "",
        *_rows(
            ("claim", "the paper's figure", "ours ± 95 %", "verdict"),
            [(one.claim.text, one.claim.paper, one.figure, one.verdict) for one in found.judged],
        ),
        "",
        *[f"- {one.claim.text}: {one.claim.note}" for one in found.judged if one.claim.note],
        "",
        *_rows(
            ("arm", "score", "runs"),
            [(arm.name, arm.score, f"{arm.finished}/{arm.wanted}") for arm in found.arms],
        ),
        *(["", f"Scores: {found.metrics}."] if found.metrics else []),
    ]
    return "\n".join(lines) + "\n"


def write(path: Path, found: Reproduction) -> None:
    """Write the tables to a file as Markdown.

    Raises:
        RecordError: the file cannot be written.
    """
    try:
        path.write_text(markdown(found), encoding="utf-8", newline="\n")
    except OSError as error:
        raise RecordError(
            f"The tables {path} cannot be written: {error.strerror}. Give another file, in a "
            "folder that is there."
        ) from error


def _rows(heading: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    return [
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
        for row in (heading, ("---",) * len(heading), *rows)
    ]
