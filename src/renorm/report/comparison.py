"""A comparison of normalizers as plain data: cells, paired differences, a conclusion."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from renorm.errors import ArgumentError
from renorm.report.cells import Cell, Difference
from renorm.report.conclusion import conclude
from renorm.report.records import Record, Specification
from renorm.report.statistics import Estimate, estimate, median_ratio, paired
from renorm.report.wording import Unit, last_line, unit_for

BASELINE = "batch_norm"
SUBJECT = "batch_renorm"

Place = tuple[str, str]


@dataclass(frozen=True)
class Comparison:
    """What a table shows, and the sentences that follow from it.

    Args:
        cells: conditions in the order asked for, normalizers within.
        differences: the subject against every other normalizer, condition by condition.
        sentences: the conclusion in plain language, computed from the figures.
        unit: how scores are written.
        baseline, subject: the normalizers that differences are about.
        wanted: the runs asked for.
        failures: the error of each failed run in a line.
    """

    cells: tuple[Cell, ...]
    differences: tuple[Difference, ...]
    sentences: tuple[str, ...]
    unit: Unit
    baseline: str
    subject: str
    wanted: tuple[Specification, ...]
    failures: Mapping[str, str] = field(default_factory=dict)

    @property
    def conclusion(self) -> str:
        """The sentences as one text."""
        return " ".join(self.sentences)

    @property
    def complete(self) -> bool:
        """Whether every run that was asked for has a record, and none failed."""
        return all(cell.failed == cell.missing == 0 for cell in self.cells)

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names, in the order asked for."""
        return tuple(dict.fromkeys(cell.condition for cell in self.cells))

    @property
    def normalizers(self) -> tuple[str, ...]:
        """Names, in the order asked for."""
        return tuple(dict.fromkeys(cell.normalizer for cell in self.cells))

    @property
    def lrs_differ(self) -> bool:
        """Whether the runs asked for have more than one learning rate."""
        return len({one.lr for one in self.wanted}) > 1

    @property
    def gapped(self) -> bool:
        """Whether any run has a score in train mode to be held against that in eval mode."""
        return any(cell.gap is not None for cell in self.cells)

    @property
    def timed(self) -> bool:
        """Whether any cell has a step time to be held against the baseline's."""
        return any(cell.time is not None for cell in self.cells)

    def lead(self, cell: Cell) -> Difference | None:
        """The subject against the normalizer of a cell; None for the subject itself."""
        for one in self.differences:
            if (one.condition, one.against) == (cell.condition, cell.normalizer):
                return one
        return None


def compare(wanted: Sequence[Specification], records: Iterable[Record]) -> Comparison:
    """Set out the records of the runs that were asked for; others are left aside.

    The subject is batch renorm and the baseline batch norm; where one of them was not asked for,
    the last and the first normalizer stand in. Runs are paired by condition and seed, so
    normalizers may differ in their learning rate. Runs of the search for these are left aside.

    Args:
        wanted: specifications of all runs asked for, at least one, each normalizer at most once
            with a condition and seed.
        records: of some or all of them, in any order; one with an error counts as failed.

    Raises:
        ArgumentError: nothing was asked for, a normalizer twice with a condition and seed, or the
            records have scores of different metrics.
    """
    wanted = tuple(one for one in dict.fromkeys(wanted) if one.split != "validation")
    _check(wanted)
    asked = set(wanted)
    found = {one.specification: one for one in records if one.specification in asked}
    unit = _unit(found.values())
    conditions = tuple(dict.fromkeys(one.condition for one in wanted))
    normalizers = tuple(dict.fromkeys(one.normalizer for one in wanted))
    baseline, subject = _roles(normalizers)
    runs = {
        (condition, normalizer): [
            one for one in wanted if (one.condition, one.normalizer) == (condition, normalizer)
        ]
        for condition in conditions
        for normalizer in normalizers
    }
    done = {place: [found[one] for one in ones if one in found] for place, ones in runs.items()}
    differences = tuple(
        Difference(
            condition,
            subject,
            other,
            paired(_scores(done[condition, subject], unit), _scores(done[condition, other], unit)),
        )
        for condition in conditions
        for other in (baseline, *(name for name in normalizers if name != baseline))
        if other != subject
    )
    cells = tuple(
        _cell(place, ones, done[place], done[place[0], baseline], unit)
        for place, ones in runs.items()
    )
    failures = {
        str(one): last_line(error)
        for one in wanted
        if one in found and (error := found[one].error) is not None
    }
    sentences = conclude(differences, cells, baseline, subject, unit)
    return Comparison(cells, differences, sentences, unit, baseline, subject, wanted, failures)


def _check(wanted: Sequence[Specification]) -> None:
    if not wanted:
        raise ArgumentError("A comparison needs at least one run, got none.")
    seen: dict[tuple[str, str, int], Specification] = {}
    for one in wanted:
        other = seen.setdefault((one.condition, one.normalizer, one.seed), one)
        if other != one:
            raise ArgumentError(
                f"A comparison has one run a normalizer, condition and seed, got two: {other!r} "
                f"and {one!r}. Compare runs with different settings apart."
            )


def _unit(records: Iterable[Record]) -> Unit:
    """The unit of all scores; that of a run without one where there is none."""
    records = list(records)
    scored = [one for one in records if one.score is not None]
    metrics = list(dict.fromkeys((one.metric, one.percent) for one in scored or records))
    if scored and len(metrics) > 1:
        names = ", ".join(f"{name} ({'fractions' if p else 'plain'})" for name, p in metrics)
        raise ArgumentError(
            f"Scores of different metrics cannot be compared, got {names}. Remove the records of "
            "one of them."
        )
    metric, percent = metrics[0] if metrics else ("score", True)
    return unit_for(metric, percent, [one.score for one in scored if one.score is not None])


def _roles(normalizers: tuple[str, ...]) -> tuple[str, str]:
    if BASELINE in normalizers and SUBJECT in normalizers:
        return BASELINE, SUBJECT
    return normalizers[0], normalizers[-1]


def _cell(
    place: Place,
    wanted: Sequence[Specification],
    records: Sequence[Record],
    baseline: Sequence[Record],
    unit: Unit,
) -> Cell:
    failed = sum(one.error is not None for one in records)
    finished = sum(one.score is not None for one in records)
    return Cell(
        *place,
        _estimate(records, lambda one: one.score, unit),
        _estimate(records, lambda one: one.train_mode_score, unit),
        _estimate(records, lambda one: one.gap, unit),
        median_ratio(_step_seconds(records), _step_seconds(baseline)),
        tuple(sorted({one.lr for one in wanted})),
        len(wanted),
        finished,
        len(records) - failed - finished,
        failed,
        len(wanted) - len(records),
    )


def _estimate(
    records: Sequence[Record], of: Callable[[Record], float | None], unit: Unit
) -> Estimate | None:
    values = [unit.shown(value) for one in records if (value := of(one)) is not None]
    return estimate(values) if values else None


def _scores(records: Sequence[Record], unit: Unit) -> dict[int, float]:
    return {
        one.specification.seed: unit.shown(one.score) for one in records if one.score is not None
    }


def _step_seconds(records: Sequence[Record]) -> dict[int, float]:
    return {
        one.specification.seed: one.step_seconds for one in records if one.step_seconds is not None
    }
