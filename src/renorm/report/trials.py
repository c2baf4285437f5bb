"""The fixes that were tried, ranked by what they gained."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from renorm.measure.records import AS_IT_IS, FURTHER, FixTrial
from renorm.report.diagnosis_wording import finite, number
from renorm.report.statistics import Estimate, estimate
from renorm.report.wording import MOST_DECIMALS, counted

SMALL = 0.01  # below it, three decimals are too few to tell anything
MATERIAL = 0.1  # of a gain or a loss; a smaller difference is not worth a change


@dataclass(frozen=True)
class Ranked:
    """A fix that was tried, with its place among the others.

    Args:
        trial: what was found.
        gain: over the seeds that have one, above 0 if the fix helps; None without any.
        loss: in eval mode on the batches held out; None without any.
        helps: whether it is among ``helping``.
        outcome: what kept figures from being there, in words; empty if nothing did.
    """

    trial: FixTrial
    gain: Estimate | None
    loss: Estimate | None
    helps: bool
    outcome: str


def ranked(trials: Sequence[FixTrial]) -> tuple[Ranked, ...]:
    """In the order of the records, which is that of what ranked them; those that failed are last.

    The gains do not have that order: those of fixes that train have in them what training gives.

    Raises:
        MissingExtraError: scipy, which has the quantile of the intervals, is not installed.
    """
    helpful = {trial.fix for trial in helping(trials)}
    found = [_ranked(trial, trial.fix in helpful) for trial in trials]
    return tuple(sorted(found, key=lambda one: (bool(one.trial.failure), one.gain is None)))


def helping(trials: Iterable[FixTrial]) -> tuple[FixTrial, ...]:
    """The fixes that clearly help, and by at least a tenth of the loss, without a seed lost.

    Those that train also have to do so against further training without a fix, which may be all
    that the model wants. All their intervals hold together with 95 % (Bonferroni). The tenth is a
    matter of taste: a difference can be beyond all doubt and too small to change a model for.

    Raises:
        MissingExtraError: scipy, which has the quantile of the intervals, is not installed.
    """
    trials = tuple(trials)
    further = next((trial for trial in trials if trial.fix == FURTHER), None)
    fixes = [t for t in trials if t.fix not in (AS_IT_IS, FURTHER) and _finite(t.gains)]
    return tuple(
        trial
        for trial in fixes
        if len(_finite(trial.losses)) == len(trial.seeds)
        and _is_worth_it(trial, _finite(trial.gains), len(fixes))
        and _is_worth_it(trial, _leads(trial, further), len(fixes))
    )


def _is_worth_it(trial: FixTrial, better: Sequence[float], comparisons: int) -> bool:
    """Whether the loss is clearly lower than another, and by a tenth; so it is without another."""
    if not better:
        return True
    found = estimate(better, comparisons)
    other = abs(fmean(_finite(trial.losses)) + found.mean)
    return found.clear and found.mean >= MATERIAL * other


def _leads(trial: FixTrial, further: FixTrial | None) -> list[float]:
    """How much lower the loss is than after as much training without a fix, by seed."""
    if further is None or not trial.steps:
        return []
    others = dict(zip(further.seeds, further.losses, strict=False))
    pairs = [(others.get(s), x) for s, x in zip(trial.seeds, trial.losses, strict=False)]
    return _finite([None if a is None or b is None else a - b for a, b in pairs])


def _finite(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None and finite(value)]


def conclusion(found: Sequence[Ranked]) -> str:
    """Which fix helps, by how much and at what cost, in a sentence; empty without any trial."""
    fixes = [one for one in found if one.trial.fix not in (AS_IT_IS, FURTHER)]
    if not fixes:
        return ""
    helpful = [one for one in fixes if one.helps]
    if not helpful:
        return f"Of {_fixes(fixes)} tried, none is clearly better than to do without."
    best, others = helpful[0], len(helpful) - 1
    also = " 1 other helps too." if others == 1 else f" {others} others help too." if others else ""
    seeds = counted(best.gain.count if best.gain else 0, "seed")
    return (
        f"Of {_fixes(fixes)} tried, {best.trial.fix} is first: its loss is lower by "
        f"{gain_of(best, False)} over {seeds}{_at_cost(best)}.{also}"
    )


def gain_of(one: Ranked, signed: bool = True) -> str:
    """The gain with its interval; ``-`` for none."""
    return "-" if one.gain is None else figure(one.gain, signed)


def figure(value: Estimate, signed: bool = False) -> str:
    """``mean ± half width``, to three figures of the mean.

    >>> figure(Estimate(0.12345, 0.0123, 3), signed=True), figure(Estimate(2.5, None, 1))
    ('+0.123 ± 0.012', '2.50')
    >>> figure(Estimate(0.000213, 0.0, 3), signed=True)
    '+0.00021 ± 0.00000'
    """
    size = max(abs(value.mean), value.half_width or 0.0)
    decimals = 3 if size < 1 else 2 if size < 10 else 1
    if 0 < size < SMALL:
        decimals = min(1 - math.floor(math.log10(size)), MOST_DECIMALS)
    mean = f"{value.mean:{'+' if signed else ''}z.{decimals}f}"
    return mean if value.half_width is None else f"{mean} ± {value.half_width:.{decimals}f}"


def cost_of(one: Ranked) -> str:
    """Time of a step, that without a fix being 1; in words without training."""
    if one.trial.cost is None:
        return "no training" if one.trial.steps == 0 and not one.trial.failure else "-"
    return f"{one.trial.cost:.2f}"


def _ranked(trial: FixTrial, helps: bool) -> Ranked:
    gains, losses = _finite(trial.gains), _finite(trial.losses)
    lost = len(trial.seeds) - len(losses)
    outcome = f"not tried: {trial.failure}" if trial.failure else ""
    if not outcome and lost > 0:
        verb = "diverged" if trial.steps else "no finite loss"
        outcome = f"{verb} with {lost} of {counted(len(trial.seeds), 'seed')}"
    gain, loss = (estimate(values) if values else None for values in (gains, losses))
    return Ranked(trial, gain, loss, helps, outcome)


def _fixes(fixes: Sequence[Ranked]) -> str:
    return "the 1 fix" if len(fixes) == 1 else f"{len(fixes)} fixes"


def _at_cost(one: Ranked) -> str:
    cost = one.trial.cost
    return "" if cost is None else f", and a step takes {number(cost)} times as long"
