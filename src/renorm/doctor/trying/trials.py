"""What came of the fixes that were tried, the best first."""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev

from renorm.measure.records import FixTrial
from renorm.report.statistics import Estimate, estimate

AS_IT_IS = "as it is"
MATERIAL = 0.1  # of a gain or a loss; a smaller difference is not worth a change
UNTRAINED = "untrained"  # the given model, which fixes that do not train are compared to


class Trials(tuple[FixTrial, ...]):
    """The trials, the best first, and how they were made.

    They are ranked by the mean gain, with the one standard error rule: one that is behind the best
    by no more than the standard error of the difference within seeds, or a tenth of the best gain,
    is as good, and of such the simplest comes first, which is the model as it is. Behind them are
    those that diverged for some seed, then those without a loss. Where the model as it is diverged
    for every seed there is no gain to go by, and the loss ranks.

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
        """The fixes that clearly help, and by at least a tenth of the loss.

        All their intervals hold together with 95 % (Bonferroni). The tenth is a matter of taste:
        a difference can be beyond all doubt and too small to change a model for.

        Raises:
            MissingExtraError: scipy, which has the quantile, is not installed.
        """
        fixes = [trial for trial in self if trial.fix != AS_IT_IS and _told(trial.gains)]
        gains = [(trial, gain(trial, comparisons=len(fixes))) for trial in fixes]
        return tuple(t for t, g in gains if g and g.clear and g.mean >= MATERIAL * _without(t))


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


def _without(trial: FixTrial) -> float:
    """Magnitude of the loss that the gains are of."""
    pairs = zip(trial.losses, trial.gains, strict=True)
    return abs(fmean(x + g for x, g in pairs if x is not None and g is not None))


def _ranked(trials: Sequence[FixTrial], by_loss: bool) -> list[FixTrial]:
    def missing(trial: FixTrial) -> tuple[bool, int]:
        return not _figures(trial, by_loss), sum(loss is None for loss in trial.losses)

    ranked = []
    for level in sorted({missing(trial) for trial in trials}):
        left = [trial for trial in trials if missing(trial) == level]
        while left:
            ranked.append(_simplest_of_the_best(left, by_loss))
            left.remove(ranked[-1])
    return ranked


def _simplest_of_the_best(trials: Sequence[FixTrial], by_loss: bool) -> FixTrial:
    figures = [_figures(trial, by_loss) for trial in trials]
    best = max(figures, key=lambda own: fmean(own.values()) if own else 0.0)
    return next(t for t, own in zip(trials, figures, strict=True) if _as_good(own, best, by_loss))


def _as_good(own: Mapping[int, float], best: Mapping[int, float], by_loss: bool) -> bool:
    behind = [best[seed] - own[seed] for seed in own.keys() & best.keys()]
    if own is best or not behind:
        return own is best
    error = stdev(behind) / math.sqrt(len(behind)) if len(behind) > 1 else 0.0
    return fmean(behind) <= error or (
        not by_loss and fmean(behind) <= MATERIAL * fmean(best.values())
    )


def _figures(trial: FixTrial, by_loss: bool) -> dict[int, float]:
    """What counts for it, by seed; the more the better."""
    if by_loss:
        return {s: -x for s, x in zip(trial.seeds, trial.losses, strict=True) if x is not None}
    return {s: x for s, x in zip(trial.seeds, trial.gains, strict=True) if x is not None}


def _told(figures: Iterable[float | None]) -> list[float]:
    return [figure for figure in figures if figure is not None]
