"""What came of the fixes that were tried, the best first."""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev

from renorm.measure.records import AS_IT_IS as AS_IT_IS
from renorm.measure.records import FURTHER as FURTHER
from renorm.measure.records import FixTrial
from renorm.report.statistics import Estimate, estimate
from renorm.report.trials import MATERIAL, helping

CALIBRATE = "calibrate"

Figures = Mapping[int, float]


class Trials(tuple[FixTrial, ...]):
    """The trials, the best first, and how they were made.

    They are ranked by the mean of their gain, less what training has in it without a fix: of those
    that train that is the loss after further training less that of calibration alone, both by
    measured statistics. So none is ahead for having trained, and calibration is behind only where
    training with a fix does more than training and calibration do. The one standard error rule
    holds: one that is behind the best by no more than the standard error of the difference within
    seeds, or a tenth of the best, is as good, and of such the simplest comes first: the model as it
    is, then what does not train, then further training without a fix. Behind them are those that
    diverged for some seed, then those without a loss. Where the given model has no finite loss
    there is no gain to go by, and the loss ranks, likewise less what training has in it.

    Args:
        trials: the simplest first.
        interrupted: whether Ctrl-C ended them; they are then of the seeds that every fix had.
        training, held_out: batches that a seed trains on at most, and is judged by.
        optimizer: in words; empty if nothing was trained.

    Source: Breiman et al. 1984, "Classification and Regression Trees", section 3.4.3, for the rule.
    """

    interrupted: bool
    training: int
    held_out: int
    optimizer: str

    def __new__(
        cls,
        trials: Iterable[FixTrial] = (),
        *,
        interrupted: bool = False,
        training: int = 0,
        held_out: int = 0,
        optimizer: str = "",
    ) -> "Trials":
        """Rank the trials."""
        given = list(trials)
        lost = any(t.fix == AS_IT_IS and not _told(t.losses) for t in given)
        self = super().__new__(cls, _ranked(given, lost))
        self.interrupted, self.optimizer = interrupted, optimizer
        self.training, self.held_out = training, held_out
        return self

    @property
    def helpful(self) -> tuple[FixTrial, ...]:
        """The fixes that clearly help; see ``renorm.report.trials.helping``."""
        return helping(self)


def gain(trial: FixTrial, comparisons: int = 1) -> Estimate | None:
    """The mean gain over seeds with Student's 95 % interval; None where there is none.

    The gains are differences within a seed, of the same batches in the same order.

    Args:
        trial: of a fix.
        comparisons: fixes that are looked at together; more make the interval wider.

    Raises:
        MissingExtraError: scipy, which has the quantile, is not installed.

    >>> trial = FixTrial("(model)", "frozen", "", 9, (0, 1), (1.0, 2.0), (0.5, 0.5), 1.0, "")
    >>> gain(trial)
    Estimate(mean=0.5, half_width=0.0, count=2)
    """
    told = _told(trial.gains)
    return estimate(told, comparisons) if told else None


def _ranked(trials: Sequence[FixTrial], by_loss: bool) -> list[FixTrial]:
    figures = _figures(trials, by_loss)

    def missing(trial: FixTrial) -> tuple[bool, int]:
        return not figures[trial.fix], sum(loss is None for loss in trial.losses)

    ranked = []
    for level in sorted({missing(trial) for trial in trials}):
        left = [trial for trial in trials if missing(trial) == level]
        while left:
            ranked.append(_simplest_of_the_best(left, figures, by_loss))
            left.remove(ranked[-1])
    return ranked


def _simplest_of_the_best(
    trials: Sequence[FixTrial], figures: Mapping[str, Figures], by_loss: bool
) -> FixTrial:
    own = [figures[trial.fix] for trial in trials]
    best = max(own, key=lambda one: fmean(one.values()) if one else 0.0)
    return next(t for t, one in zip(trials, own, strict=True) if _as_good(one, best, by_loss))


def _as_good(own: Figures, best: Figures, by_loss: bool) -> bool:
    behind = [best[seed] - own[seed] for seed in own.keys() & best.keys()]
    if own is best or not behind:
        return own is best
    error = stdev(behind) / math.sqrt(len(behind)) if len(behind) > 1 else 0.0
    return fmean(behind) <= error or (
        not by_loss and fmean(behind) <= MATERIAL * fmean(best.values())
    )


def _figures(trials: Sequence[FixTrial], by_loss: bool) -> dict[str, Figures]:
    """What counts by fix and seed, the more the better: without what training has in it."""
    found = {
        t.fix: _known(t.seeds, t.losses, -1.0) if by_loss else _known(t.seeds, t.gains, 1.0)
        for t in trials
    }
    trained = {trial.fix for trial in trials if trial.steps}
    untrained, further = found.get(CALIBRATE, {}), found.get(FURTHER, {})
    # calibration that was not tried gained nothing; its loss is not known then
    seeds = further.keys() & untrained.keys() if by_loss else further.keys()
    credit = {seed: further[seed] - untrained.get(seed, 0.0) for seed in seeds}
    return {
        fix: {s: x - (credit.get(s, 0.0) if fix in trained else 0.0) for s, x in own.items()}
        for fix, own in found.items()
    }


def _known(seeds: Sequence[int], values: Sequence[float | None], sign: float) -> Figures:
    return {s: sign * x for s, x in zip(seeds, values, strict=True) if x is not None}


def _told(figures: Iterable[float | None]) -> list[float]:
    return [figure for figure in figures if figure is not None]
