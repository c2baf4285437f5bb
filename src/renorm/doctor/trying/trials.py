"""What came of the fixes that were tried, the best first."""

from collections.abc import Iterable
from statistics import fmean

from renorm.measure.records import FixTrial
from renorm.report.statistics import Estimate, estimate

AS_IT_IS = "as it is"
UNTRAINED = "untrained"  # the given model, which fixes that do not train are compared to


class Trials(tuple[FixTrial, ...]):
    """The trials, the best first, and how they were made.

    Args:
        trials: in any order.
        interrupted: whether Ctrl-C ended them; they are then of the seeds that every fix had.
        training, held_out: batches that a seed trains on at most, and is judged by.
        optimizer: in words; empty if nothing was trained.

    They are ranked by the mean gain. Behind them are those that diverged for some seed, then those
    that gave no loss at all. Where the model as it is diverged for every seed there is no gain, and
    the loss ranks.
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
        given = list(trials)
        lost = any(t.fix == AS_IT_IS and not _told(t.losses) for t in given)
        self = super().__new__(cls, sorted(given, key=lambda t: _rank(t, lost)))
        self.interrupted, self.optimizer = interrupted, optimizer
        self.training, self.held_out = training, held_out
        return self


def gain(trial: FixTrial) -> Estimate | None:
    """The mean gain over seeds with Student's 95 % interval; None where there is none.

    The gains are differences within a seed, of the same batches in the same order.

    Raises:
        MissingExtraError: scipy, which has the quantile, is not installed.

    >>> trial = FixTrial("(model)", "frozen", "", 9, (0, 1), (1.0, 2.0), (0.5, 0.5), 1.0, "")
    >>> gain(trial)
    Estimate(mean=0.5, half_width=0.0, count=2)
    """
    told = _told(trial.gains)
    return estimate(told) if told else None


def _rank(trial: FixTrial, by_loss: bool) -> tuple[bool, int, float]:
    figures = [-loss for loss in _told(trial.losses)] if by_loss else _told(trial.gains)
    missing = sum(loss is None for loss in trial.losses)
    return not figures, missing, -fmean(figures) if figures else 0.0


def _told(figures: Iterable[float | None]) -> list[float]:
    return [figure for figure in figures if figure is not None]
