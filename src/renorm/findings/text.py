"""Findings as plain text: 80 columns, one screen, the worst first; without torch or rich."""

import textwrap
from collections.abc import Iterable, Sequence
from statistics import fmean

from renorm.findings.finding import SEVERITIES, Finding
from renorm.measure.records import AS_IT_IS, NOT_DENSE, FixTrial, LayerFacts, Note, Survey

WIDTH = 80
HEIGHT = 23  # of a screen with 24 lines, one is the prompt's
_NAMED = 3  # layers that are named; the others are counted
_INDENT = " " * 9  # under the severity
_LONGEST = 3  # lines of one piece of text


def render(survey: Survey, findings: Sequence[Finding]) -> str:
    """What was looked at, the verdict, and the findings, as many as fit a screen.

    Args:
        survey: that was judged.
        findings: the worst first.
    """
    head = [*_wrapped(_about(survey)), verdict(survey, findings)]
    foot = [*_trials(survey.of(FixTrial)), *_wrapped(_left_out(survey))]
    blocks = [_block(finding, first=place == 0) for place, finding in enumerate(findings)]
    space = HEIGHT - len(head) - len(foot) - 3  # two blank lines, and the line on what is left
    shown: list[str] = []
    for place, block in enumerate(blocks):
        if place and len(shown) + len(block) > space:
            rest = ", ".join(one.id for one in findings[place:])
            shown += _wrapped(f"and {len(findings) - place} more: {rest}")[:1]
            break
        shown += block
    parts = [part for part in (head, shown, foot) if part]
    return "\n\n".join("\n".join(part) for part in parts)


def verdict(survey: Survey, findings: Sequence[Finding]) -> str:
    """How many findings there are of each severity, in a sentence.

    >>> verdict(Survey("Net", True, "quick", 0, 4, 32, True, False, ()), [])
    'Healthy: nothing was found.'
    """
    counts = {s: sum(one.severity == s for one in findings) for s in SEVERITIES}
    words = [_plural(count, severity) for severity, count in counts.items() if count]
    if not words:
        return "Nothing was found so far." if survey.interrupted else "Healthy: nothing was found."
    healthy = "" if counts["error"] or counts["warning"] else "Healthy, but for "
    so_far = " so far" if survey.interrupted else ""
    return f"{healthy}{', '.join(words)}{so_far}."


def _about(survey: Survey) -> str:
    layers = len(survey.of(LayerFacts))
    return (
        f"{survey.model}: {_plural(layers, 'normalization layer')}, "
        f"{_plural(survey.batches, 'batch', 'batches')} of {survey.examples} examples in all, "
        f"depth {survey.depth}"
    )


def _block(finding: Finding, *, first: bool) -> list[str]:
    """A finding: its title, where it is, and of the first what to do."""
    named = ", ".join(finding.layers[:_NAMED])
    more = len(finding.layers) - _NAMED
    where = f"{finding.id}, in {named}" if named else finding.id
    where += f" and {more} more" if more > 0 else ""
    lines = _wrapped(finding.title, f"{finding.severity:<9}")
    lines += _wrapped(where, _INDENT)[:1]
    if first:
        lines += _wrapped(f"Do: {finding.advice}", _INDENT)
    return lines


def _trials(trials: Sequence[FixTrial]) -> list[str]:
    """What the fixes gained, in their order, the best first."""
    tried = ((_known(one.gains), one.fix) for one in trials if one.fix != AS_IT_IS)
    gains = [(fmean(known), fix) for known, fix in tried if known]
    if not gains:
        return []
    shown = ", ".join(f"{fix} {gain:+.3g}" for gain, fix in gains)
    return _wrapped(f"Tried, with what each takes off the loss: {shown}")


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _left_out(survey: Survey) -> str:
    names = dict.fromkeys(one.quantity for one in survey.of(Note) if one.reason != NOT_DENSE)
    return f"Not measured, or in part: {', '.join(names)}" if names else ""


def _wrapped(text: str, lead: str = "") -> list[str]:
    """Lines of text under a lead, at most ``_LONGEST``."""
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=lead,
        subsequent_indent=" " * len(lead),
        max_lines=_LONGEST,
        placeholder=" ...",
    )


def _plural(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"
