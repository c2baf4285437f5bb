"""What the seeds of each fix gave, while they come."""

from renorm.doctor.trying.fixes import FIXES
from renorm.doctor.trying.trials import AS_IT_IS, FURTHER, Trials
from renorm.measure.records import MODEL, FixTrial
from renorm.report.statistics import median_ratio

Losses = dict[int, float | None]


class Results:
    """Losses and times, by fix and seed.

    Args:
        names: of the fixes.
        steps: of training.
    """

    def __init__(self, names: tuple[str, ...], steps: int) -> None:
        self.interrupted = False
        self.training, self.held_out, self.optimizer = 0, 0, ""
        self._names, self._steps = names, steps
        self._losses: dict[str, Losses] = {}
        self._times: dict[str, dict[int, float]] = {}
        self._codes: dict[str, str] = {}
        self._failures: dict[str, str] = {}
        self._seeds: list[int] = []

    def put(self, name: str, seed: int, code: str, loss: float | None, time: float | None) -> None:
        """Take in a fix for one seed: its loss, and the median time of a step in seconds."""
        self._codes[name] = code
        self._losses.setdefault(name, {})[seed] = loss
        if time is not None:
            self._times.setdefault(name, {})[seed] = time

    def fail(self, name: str, why: str) -> None:
        """Take in that a fix could not be tried."""
        self._failures[name] = why

    def failed(self, name: str) -> bool:
        """Whether it is known not to be possible."""
        return name in self._failures

    def finish(self, seed: int) -> None:
        """Take in that all fixes had this seed."""
        self._seeds.append(seed)

    def trials(self) -> Trials:
        """Of the seeds that all fixes had; none if there is no such seed."""
        made = [self._trial(AS_IT_IS, 0)]
        made += [self._trial(name, 0) for name in self._names if not FIXES[name].trains]
        if FURTHER in self._losses or FURTHER in self._failures:
            made.append(self._trial(FURTHER, self._steps))
        made += [self._trial(name, self._steps) for name in self._names if FIXES[name].trains]
        return Trials(
            made if self._seeds else (),
            interrupted=self.interrupted,
            training=self.training,
            held_out=self.held_out,
            optimizer=self.optimizer,
        )

    def _trial(self, name: str, steps: int) -> FixTrial:
        own, base = self._losses.get(name, {}), self._losses.get(AS_IT_IS, {})
        pairs = [(base.get(seed), own.get(seed)) for seed in self._seeds]
        return FixTrial(
            MODEL,
            name,
            self._codes.get(name, ""),
            steps,
            tuple(self._seeds),
            tuple(own.get(seed) for seed in self._seeds),
            tuple(None if a is None or b is None else a - b for a, b in pairs),
            median_ratio(self._times.get(name, {}), self._times.get(FURTHER, {})),
            self._failures.get(name, ""),
        )
