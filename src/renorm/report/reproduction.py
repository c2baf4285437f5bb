"""What came of reproducing a paper, as plain data: verdicts, arms, what they took."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from renorm.report.claims import Judged, Runs, Verdict
from renorm.report.records import Record, Specification
from renorm.report.statistics import Estimate, estimate
from renorm.report.wording import counted, listed, unit_for

SMOKE = "At smoke scale small nets and scikit-learn's digits stand for what is named here."


@dataclass(frozen=True)
class Arm:
    """Runs that differ in their seed alone.

    Args:
        name: what claims call them.
        run: that with seed 0.
        score: mean over the seeds that have one, as text, in % where it is a fraction, ``-``
            without any; and how many diverged.
        figures: (name, mean over seeds) of what else they measured.
        finished, wanted: runs.
        absent: what became of the others, in words; empty if there are none.
        minutes: of processor time, all runs together.
    """

    name: str
    run: Specification
    score: str
    figures: tuple[tuple[str, Estimate], ...]
    finished: int
    wanted: int
    absent: str
    minutes: float

    @property
    def setting(self) -> str:
        """What is run, in the lab's words."""
        one = self.run
        return (
            f"{one.task}, {one.model}, {one.normalizer}, {one.condition}, {one.steps} steps, "
            f"lr {one.lr:g}, batch {one.batch_size}, groups of {one.group_size}"
        )


@dataclass(frozen=True)
class Reproduction:
    """A study at one scale, as far as its runs are done.

    Args:
        name, title, source, about: of the study.
        scale: at which it was run.
        seeds: how many were asked for.
        judged: its claims.
        arms: its runs.
        records: of these runs.
        command: what did them, to be typed again.
    """

    name: str
    title: str
    source: str
    about: str
    scale: str
    seeds: int
    judged: tuple[Judged, ...]
    arms: tuple[Arm, ...]
    records: tuple[Record, ...]
    command: str

    @property
    def data(self) -> str:
        """What stands for the data sets that ``about`` speaks of, in a sentence; else empty."""
        return SMOKE if self.scale == "smoke" else ""

    @property
    def complete(self) -> bool:
        """Whether every run has a record, and none failed."""
        return all(not arm.absent for arm in self.arms)

    @property
    def minutes(self) -> float:
        """Processor time of all runs; a run that several arms share counts once."""
        return sum(one.cpu_seconds for one in self.records) / 60

    @property
    def metrics(self) -> str:
        """What the scores of the arms are, with what must be said of the data; empty without."""
        scored = [one for one in self.records if one.score is not None]
        units = [unit_for(one.metric, one.percent, ()).heading for one in scored]
        return "; ".join(dict.fromkeys(units))

    @property
    def summary(self) -> str:
        """How many claims came to what, in a sentence."""
        counts = Counter(one.verdict for one in self.judged)
        parts = [f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict]]
        return f"Of {counted(len(self.judged), 'claim')}: {listed(parts)}."


def arms(wanted: Mapping[str, Specification], seeds: int, runs: Runs) -> tuple[Arm, ...]:
    """What each arm came to.

    Args:
        wanted: arm -> its run with seed 0.
        seeds: how many were asked for.
        runs: arm -> seed -> record.
    """
    return tuple(_arm(name, one, seeds, runs[name]) for name, one in wanted.items())


def _arm(name: str, one: Specification, seeds: int, runs: Mapping[int, Record]) -> Arm:
    asked = [runs[seed] for seed in range(seeds) if seed in runs]
    failed = sum(record.error is not None for record in asked)
    missing = seeds - len(asked)
    gone = [(failed, "failed"), (missing, "missing")]
    return Arm(
        name,
        one,
        _score(asked),
        _figures(asked),
        len(asked) - failed,
        seeds,
        listed([f"{count} {what}" for count, what in gone if count]),
        sum(record.cpu_seconds for record in asked) / 60,
    )


def _score(records: Sequence[Record]) -> str:
    scored = [(record, record.score) for record in records if record.score is not None]
    shown = "-"
    if scored:
        first = scored[0][0]
        unit = unit_for(first.metric, first.percent, [score for _, score in scored])
        shown = unit.figure(estimate([unit.shown(score) for _, score in scored]))
    diverged = sum(record.diverged_at is not None for record in records)
    return shown + (f" ({diverged} diverged)" if diverged else "")


def _figures(records: Iterable[Record]) -> tuple[tuple[str, Estimate], ...]:
    found: dict[str, list[float]] = {}
    for record in records:
        for name, value in record.figures:
            found.setdefault(name, []).append(value)
    return tuple((name, estimate(values)) for name, values in found.items())
