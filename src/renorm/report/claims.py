"""What a paper claims, held against records: evidence with its interval, and a verdict."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from renorm.report.records import Record
from renorm.report.statistics import Estimate, estimate
from renorm.report.wording import Unit

Runs = Mapping[str, Mapping[int, Record]]  # arm -> seed -> record
Value = Callable[[Record], float | None]


@dataclass(frozen=True)
class Evidence:
    """The figure that decides a claim.

    Args:
        arms: those whose runs it needs.
        of: runs, of all these arms -> the figure, None where seeds are missing.
    """

    arms: frozenset[str]
    of: Callable[[Runs], Estimate | None]

    def __call__(self, runs: Runs) -> Estimate | None:
        """The figure; None where arms or seeds are missing."""
        return self.of(runs) if self.arms <= runs.keys() else None


class Verdict(StrEnum):
    """What became of a claim."""

    REPRODUCED = "reproduced"
    DIRECTION = "direction reproduced"
    INVISIBLE = "not visible at this scale"
    CONTRADICTED = "contradicted"
    OPEN = "not run"


Rule = Callable[[Estimate], Verdict]
NEARLY = 0.99  # of a score, to be got to


@dataclass(frozen=True)
class Claim:
    """A sentence of a paper, or one that follows from it, which runs can bear out or not.

    Args:
        text: the claim.
        evidence: runs -> the figure that decides, None where runs are missing.
        rule: figure -> verdict.
        unit: of the figure, such as ``points``.
        paper: the paper's own figure, where it may be quoted; else empty.
        note: what must be known beside it: the regime, what else was tried.
        decimals: of the figure.
    """

    text: str
    evidence: Evidence
    rule: Rule
    unit: str = "points"
    paper: str = ""
    note: str = ""
    decimals: int = 1


@dataclass(frozen=True)
class Judged:
    """A claim with what the runs say of it; ``ours`` is None where they are missing."""

    claim: Claim
    ours: Estimate | None
    verdict: Verdict

    @property
    def figure(self) -> str:
        """The figure as text, ``mean ± half width`` with its unit."""
        if self.ours is None:
            return "-"
        shown = Unit(self.claim.unit, False, self.claim.decimals).figure(self.ours)
        return f"{shown} {self.claim.unit}".rstrip()


def judge(claims: Sequence[Claim], runs: Runs) -> tuple[Judged, ...]:
    """A verdict on each claim."""
    return tuple(_judged(claim, runs) for claim in claims)


def _judged(claim: Claim, runs: Runs) -> Judged:
    ours = claim.evidence(runs)
    return Judged(claim, ours, Verdict.OPEN if ours is None else claim.rule(ours))


def more_than(bar: float = 0.0, nothing: float = 0.0) -> Rule:
    """The claim is that the figure is above nothing, and that it reaches ``bar``.

    Reproduced: nothing lies below the interval and the mean reaches the bar. Direction reproduced:
    nothing lies below the interval. Contradicted: it lies above. Otherwise, and without an
    interval, nothing is visible.

    Args:
        bar: what is claimed, or asked for.
        nothing: the figure if there were no effect: 0 of a difference, 1 of a ratio.

    >>> more_than(2)(Estimate(3.0, 1.0, 3)), more_than(2)(Estimate(1.0, 0.5, 3))
    (<Verdict.REPRODUCED: 'reproduced'>, <Verdict.DIRECTION: 'direction reproduced'>)
    """

    def rule(ours: Estimate) -> Verdict:
        if not replace(ours, mean=ours.mean - nothing).clear:
            return Verdict.INVISIBLE
        if ours.mean < nothing:
            return Verdict.CONTRADICTED
        return Verdict.REPRODUCED if ours.mean >= bar else Verdict.DIRECTION

    return rule


def between(low: float, high: float) -> Rule:
    """The claim is that the figure lies between two bounds, one of which may be infinite.

    Reproduced: the whole interval does. Direction reproduced: the mean does. Contradicted: no part
    of the interval does. Otherwise, and without an interval, nothing is visible.

    >>> between(-0.5, 0.5)(Estimate(0.2, 0.1, 3)), between(-0.5, 0.5)(Estimate(0.2, 0.9, 3))
    (<Verdict.REPRODUCED: 'reproduced'>, <Verdict.DIRECTION: 'direction reproduced'>)
    """

    def rule(ours: Estimate) -> Verdict:
        if ours.half_width is None:
            return Verdict.INVISIBLE
        least, most = ours.mean - ours.half_width, ours.mean + ours.half_width
        if low <= least and most <= high:
            return Verdict.REPRODUCED
        if low <= ours.mean <= high:
            return Verdict.DIRECTION
        return Verdict.CONTRADICTED if most < low or least > high else Verdict.INVISIBLE

    return rule


def percent(record: Record) -> float | None:
    """The score in eval mode in %; 0 for a run that diverged, None for one that failed."""
    if record.error is not None:
        return None
    return 0.0 if record.score is None else 100 * record.score


def gap(record: Record) -> float | None:
    """Train mode less eval mode on the same test batches, in points; 0 for a run that diverged."""
    if record.error is not None:
        return None
    if record.diverged_at is not None:
        return 0.0
    return None if record.gap is None else 100 * record.gap


def last_loss(most: float) -> Value:
    """The training loss at the end, at most ``most``, which a run that diverged has.

    Args:
        most: such as log(classes), the cross-entropy of guessing.

    Returns:
        The value; None of a run that failed.
    """

    def found(record: Record) -> float | None:
        if record.error is not None:
            return None
        return most if record.loss is None else min(record.loss, most)

    return found


def figure(name: str) -> Value:
    """What the task measured under a name; None where it did not."""
    return lambda record: dict(record.figures).get(name)


def contrast(weights: Mapping[str, float], of: Value = percent) -> Evidence:
    """A weighted sum over arms, seed by seed: ``{"ours": 1, "theirs": -1}`` is a difference.

    Seeds that not all arms have are left out.
    """
    return weighted([(weight, arm, of) for arm, weight in weights.items()])


def weighted(terms: Sequence[tuple[float, str, Value]]) -> Evidence:
    """As ``contrast``, each term with a value of its own: (weight, arm, value)."""
    weights = [weight for weight, _, _ in terms]
    return combined(
        [(arm, of) for _, arm, of in terms],
        lambda values: math.fsum(map(math.prod, zip(weights, values, strict=True))),
    )


def orders(ours: str, theirs: str, of: Value) -> Evidence:
    """``log10(ours / theirs)``, seed by seed: how many orders of magnitude a value is above.

    Seeds in which either is not above 0 are left out.
    """
    return weighted([(1, ours, log(of)), (-1, theirs, log(of))])


def log(of: Value) -> Value:
    """``log10`` of a value; None where it is not above 0."""

    def found(record: Record) -> float | None:
        value = of(record)
        return math.log10(value) if value is not None and value > 0 else None

    return found


def combined(
    terms: Sequence[tuple[str, Value]], to_one: Callable[[list[float]], float]
) -> Evidence:
    """What the values of several arms come to, seed by seed, and the mean of that.

    Args:
        terms: (arm, value).
        to_one: the values of one seed -> a number.
    """

    def of(runs: Runs) -> Estimate | None:
        found = []
        for seed in sorted(set.intersection(*(set(runs[arm]) for arm, _ in terms))):
            values = [value(runs[arm][seed]) for arm, value in terms]
            known = [one for one in values if one is not None]
            if len(known) == len(values):
                found.append(to_one(known))
        return estimate(found) if found else None

    return Evidence(frozenset(arm for arm, _ in terms), of)


def times_as_fast(ours: str, theirs: str) -> Evidence:
    """How many times as fast one arm gets nearly to the score that the other ends with.

    Seed by seed, the steps that theirs takes to get to 99 % of its last score over those of ours,
    both interpolated along the curves, from 0 at step 0; equal runs are 1 times as fast. (Of the
    last score itself, noise on a plateau would decide.) A seed in which ours never gets there
    counts as 0; as 1, which says nothing, where ours has fewer steps than theirs and goes well. A
    seed is left out where ours failed, or theirs has no score above 0.
    """

    def of(runs: Runs) -> Estimate | None:
        both = runs[ours].keys() & runs[theirs].keys()
        found = [_speed(runs[ours][seed], runs[theirs][seed]) for seed in sorted(both)]
        known = [one for one in found if one is not None]
        return estimate(known) if known else None

    return Evidence(frozenset((ours, theirs)), of)


def _speed(ours: Record, theirs: Record) -> float | None:
    if theirs.score is None or theirs.score <= 0 or ours.error is not None:
        return None
    nearly = NEARLY * theirs.score
    taken = _steps_to(nearly, ours)
    if taken is None:
        shorter = ours.specification.steps < theirs.specification.steps
        return 1.0 if shorter and ours.diverged_at is None else 0.0
    own = _steps_to(nearly, theirs)
    return (theirs.specification.steps if own is None else own) / taken


def _steps_to(score: float, record: Record) -> float | None:
    """The step at which the curve gets to a score; None if it never does."""
    before = (0, 0.0)
    for step, found in record.curve:
        if found >= score:
            part = (score - before[1]) / (found - before[1]) if found > before[1] else 1.0
            return before[0] + max(part, 0.0) * (step - before[0])
        before = step, found
    return None


def alone(arm: str, of: Value) -> Evidence:
    """A value of one arm."""
    return weighted([(1.0, arm, of)])
