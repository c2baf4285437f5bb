"""What the seeds of each fix gave, while they come."""

from renorm.doctor.trying.fixes import FIXES
from renorm.doctor.trying.trials import AS_IT_IS, UNTRAINED, Trials
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
        trained = AS_IT_IS in self._losses or AS_IT_IS in self._failures
        base = AS_IT_IS if trained else UNTRAINED
        made = [self._trial(AS_IT_IS, base, base, self._steps if trained else 0)]
        for name in self._names:
            trains = FIXES[name].trains
            likewise = AS_IT_IS if trains else UNTRAINED
            made.append(self._trial(name, name, likewise, self._steps if trains else 0))
        return Trials(
            made if self._seeds else (),
            interrupted=self.interrupted,
            training=self.training,
            held_out=self.held_out,
            optimizer=self.optimizer,
        )

    def _trial(self, fix: str, name: str, likewise: str, steps: int) -> FixTrial:
        own, base = self._losses.get(name, {}), self._losses.get(likewise, {})
        pairs = [(base.get(seed), own.get(seed)) for seed in self._seeds]
        return FixTrial(
            MODEL,
            fix,
            self._codes.get(name, ""),
            steps,
            tuple(self._seeds),
            tuple(own.get(seed) for seed in self._seeds),
            tuple(None if a is None or b is None else a - b for a, b in pairs),
            median_ratio(self._times.get(name, {}), self._times.get(likewise, {})),
            self._failures.get(name, ""),
        )
