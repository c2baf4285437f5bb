"""What a diagnosis says in words, the same on the page and on a terminal."""

import math
from collections import Counter
from collections.abc import Sequence

from renorm.findings import SEVERITIES, Figure, Finding
from renorm.measure.records import MODEL, Setting, Survey
from renorm.report.wording import counted, listed

OPENINGS = {
    "error": "Normalization hurts this model",
    "warning": "Normalization is likely to hurt this model",
}
MEANINGS = {
    "error": "costs accuracy or breaks",
    "warning": "is likely to cost accuracy",
    "note": "is worth knowing",
}
ENOUGH = 10  # batches, fewer of which leave spreads and dependence largely open
HEALTHY = "Healthy, nothing is wrong with the normalization of this model"
UNKNOWN = "Nothing wrong was found so far, but not all that was asked for was measured"


def verdict(survey: Survey, findings: Sequence[Finding]) -> str:
    """What is wrong, or that nothing is, in a sentence.

    Args:
        survey: that the findings are of.
        findings: the worst first.
    """
    if findings and findings[0].severity in OPENINGS:
        return f"{opening(survey, findings)}: {findings[0].title.strip().rstrip('.')}."
    return f"{opening(survey, findings)}."


def opening(survey: Survey, findings: Sequence[Finding]) -> str:
    """Whether anything is wrong, without saying what, and without a full stop."""
    if not findings:
        return HEALTHY if survey.complete else UNKNOWN
    return OPENINGS.get(findings[0].severity, HEALTHY)


def counts(findings: Sequence[Finding]) -> str:
    """How many findings there are of which severity, as in a sentence.

    >>> counts([])
    'no findings'
    """
    found = Counter(one.severity for one in findings)
    parts = [counted(found[name], name) for name in SEVERITIES if found[name]]
    return listed(parts) if parts else "no findings"


def measured(survey: Survey) -> str:
    """What was measured, by what, in a line."""
    layers = counted(len(list(survey.layers())), "normalization layer")
    batches = f"{survey.batches:,} {'batch' if survey.batches == 1 else 'batches'}"
    examples = f"{survey.examples:,} {'example' if survey.examples == 1 else 'examples'}"
    return f"{survey.model}: {layers}; {batches}, {examples}; {survey.depth} depth"


def caveat(survey: Survey) -> str:
    """Why there may be more to find; empty for a complete survey of enough batches."""
    if survey.complete:
        if survey.batches >= ENOUGH:
            return ""
        few = f"{survey.batches} batch{'' if survey.batches == 1 else 'es'}"
        return f"{few} cannot tell much: give {ENOUGH} or more."
    if survey.interrupted:
        return "The measurement was interrupted: what follows is of the part before that."
    return "The measurement is not complete: what follows is of what there is."


def number(value: float | None, unit: str = "") -> str:
    """A number to three figures, with its unit; ``-`` for none.

    >>> number(0.12345), number(12345.6), number(-0.0), number(12, "%"), number(None)
    ('0.123', '12,346', '0', '12 %', '-')
    """
    if value is None:
        return "-"
    large = 1000 <= abs(value) < 1e7
    text = f"{value:,.0f}" if large else f"{value:z.3g}" if value else "0"
    return f"{text} {unit}" if unit else text


def name_of(layer: str) -> str:
    """A layer as it is called in text.

    >>> name_of("(model)"), name_of("layer1.0.bn1"), name_of("")
    ('the whole model', 'layer1.0.bn1', 'the model itself')
    """
    if layer == MODEL:
        return "the whole model"
    return layer or "the model itself"


def evidence(figure: Figure) -> str:
    """A figure of a finding as text.

    >>> evidence(Figure("bn1", "staleness", 0.8312, 0.1))
    'staleness 0.831 (threshold 0.1) in bn1'
    """
    text = f"{figure.name} {number(figure.value, figure.unit)}"
    if figure.threshold is not None:
        text += f" (threshold {number(figure.threshold, figure.unit)})"
    return f"{text} in {name_of(figure.layer)}"


def setting(survey: Survey) -> tuple[tuple[str, str], ...]:
    """(what, value) of how the model was measured and what it is for."""
    found = [
        ("model", survey.model),
        ("mode before", "train" if survey.training else "eval"),
        ("depth", survey.depth),
        ("seed", str(survey.seed)),
        ("batches", f"{survey.batches:,}"),
        ("examples", f"{survey.examples:,}"),
        ("measured", _extent(survey)),
    ]
    for one in survey.of(Setting):
        found += [
            ("purpose", one.purpose),
            ("steps left", "not told" if one.steps is None else f"{one.steps:,}"),
            ("accumulation", counted(one.accumulation, "forward") + " a step"),
            ("processes", f"{one.processes:,}"),
        ]
    return tuple(found)


def finite(value: float | None) -> bool:
    """Whether there is a number that can be drawn."""
    return value is not None and math.isfinite(value)


def drawn(value: float) -> float:
    """A value to as many digits as a plot shows, so that pages stay small.

    >>> drawn(0.123456789)
    0.12346
    """
    return float(f"{value:.5g}")


def _extent(survey: Survey) -> str:
    if survey.complete:
        return "all that was asked for"
    return "in part, interrupted" if survey.interrupted else "in part"
