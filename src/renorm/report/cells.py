"""What a comparison consists of: a cell a normalizer and condition, and paired differences."""

from dataclasses import dataclass

from renorm.report.statistics import Estimate


@dataclass(frozen=True)
class Cell:
    """One normalizer under one condition; scores as ``renorm.report.wording.Unit`` shows them.

    Args:
        condition, normalizer: names.
        score: on the test examples in eval mode; None if no run has finished.
        train_mode: score on test batches in train mode, see ``Record``.
        gap: train-mode less eval-mode score on the same examples.
        time: processor time of a step over that of the baseline, the median over common seeds.
        lrs: learning rates of the runs asked for, rising.
        wanted: runs asked for.
        finished, diverged, failed, missing: what became of them; they add up to ``wanted``.
    """

    condition: str
    normalizer: str
    score: Estimate | None
    train_mode: Estimate | None
    gap: Estimate | None
    time: float | None
    lrs: tuple[float, ...]
    wanted: int
    finished: int
    diverged: int
    failed: int
    missing: int

    @property
    def absent(self) -> str:
        """The runs that are in no figure, in words; empty if there are none."""
        counts = {"diverged": self.diverged, "failed": self.failed, "missing": self.missing}
        return ", ".join(f"{count} {word}" for word, count in counts.items() if count)


@dataclass(frozen=True)
class Difference:
    """Score of ``normalizer`` less that of ``against``, over their common seeds."""

    condition: str
    normalizer: str
    against: str
    points: Estimate | None

    @property
    def pairs(self) -> int:
        """Seeds that both have a score of."""
        return self.points.count if self.points else 0

    @property
    def wins(self) -> bool:
        """Whether the interval lies above 0."""
        return self.points is not None and self.points.clear and self.points.mean > 0

    @property
    def loses(self) -> bool:
        """Whether the interval lies below 0."""
        return self.points is not None and self.points.clear and self.points.mean < 0
