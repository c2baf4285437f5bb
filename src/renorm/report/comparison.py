"""A comparison of normalizers as plain data: cells, paired differences, a conclusion."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from renorm.errors import ArgumentError
from renorm.report.records import Record, Specification
from renorm.report.statistics import Estimate, estimate, paired

BASELINE = "batch_norm"
SUBJECT = "batch_renorm"


@dataclass(frozen=True)
class Cell:
    """One normalizer under one condition; accuracies and the gap in percent.

    Args:
        condition, normalizer: names.
        accuracy: test accuracy in eval mode; None if no run has finished.
        train_mode: accuracy on test batches in train mode, see ``Record``.
        gap: train-mode less eval-mode accuracy on the same images.
        wanted: runs asked for.
        finished, diverged, failed, missing: what became of them; they add up to ``wanted``.
    """

    condition: str
    normalizer: str
    accuracy: Estimate | None
    train_mode: Estimate | None
    gap: Estimate | None
    wanted: int
    finished: int
    diverged: int
    failed: int
    missing: int


@dataclass(frozen=True)
class Difference:
    """Accuracy of ``normalizer`` less that of ``against``, in points, over their common seeds."""

    condition: str
    normalizer: str
    against: str
    points: Estimate | None


@dataclass(frozen=True)
class Comparison:
    """What a table shows, and one sentence that follows from it.

    Args:
        cells: conditions in the order asked for, normalizers within.
        differences: the subject against every other normalizer, condition by condition.
        conclusion: plain language, computed from the figures.
        failures: what went wrong in each failed run.
    """

    cells: tuple[Cell, ...]
    differences: tuple[Difference, ...]
    conclusion: str
    failures: Mapping[str, str] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether every run that was asked for has a record."""
        return all(cell.failed == cell.missing == 0 for cell in self.cells)


def compare(
    wanted: Sequence[Specification],
    records: Iterable[Record],
    failures: Mapping[Specification, str] | None = None,
) -> Comparison:
    """Set out the records of the runs that were asked for; others are left aside.

    The subject is batch renorm and the baseline batch norm; where one of them was not asked for,
    the first and the last normalizer stand in.

    Args:
        wanted: specifications of all runs asked for, at least one.
        records: of some or all of them, in any order.
        failures: runs that ended in an error, and its message.

    Raises:
        ArgumentError: nothing was asked for.
    """
    if not wanted:
        raise ArgumentError("A comparison needs at least one run, got none.")
    failures = failures or {}
    found = {record.specification: record for record in records}
    conditions = tuple(dict.fromkeys(one.condition for one in wanted))
    normalizers = tuple(dict.fromkeys(one.normalizer for one in wanted))
    cells, accuracies = [], {}
    for condition in conditions:
        for normalizer in normalizers:
            place = (condition, normalizer)
            here = [one for one in wanted if (one.condition, one.normalizer) == place]
            mine = [found[one] for one in here if one in found]
            failed = sum(one in failures and one not in found for one in here)
            cells.append(_cell(*place, len(here), mine, failed))
            accuracies[place] = {
                record.specification.seed: 100 * record.accuracy
                for record in mine
                if record.accuracy is not None
            }
    baseline, subject = _roles(normalizers)
    differences = tuple(
        Difference(
            condition,
            subject,
            other,
            paired(accuracies[condition, subject], accuracies[condition, other]),
        )
        for condition in conditions
        for other in (baseline, *(n for n in normalizers if n != baseline))
        if other != subject
    )
    conclusion = _conclusion(differences, cells, baseline, subject)
    return Comparison(
        tuple(cells), differences, conclusion, {str(one): text for one, text in failures.items()}
    )


def title(name: str) -> str:
    """A name as it is written in text.

    >>> title("batch_renorm")
    'batch renorm'
    """
    return name.replace("_", " ")


def in_points(value: Estimate) -> str:
    """``mean ± half width`` with one decimal; the mean alone where there is no interval."""
    if value.half_width is None:
        return f"{value.mean:.1f}"
    return f"{value.mean:.1f} ± {value.half_width:.1f}"


def _roles(normalizers: tuple[str, ...]) -> tuple[str, str]:
    if BASELINE in normalizers and SUBJECT in normalizers:
        return BASELINE, SUBJECT
    return normalizers[0], normalizers[-1]


def _cell(
    condition: str, normalizer: str, wanted: int, records: Sequence[Record], failed: int
) -> Cell:
    diverged = sum(record.accuracy is None for record in records)
    return Cell(
        condition,
        normalizer,
        _percent([record.accuracy for record in records]),
        _percent([record.train_mode_accuracy for record in records]),
        _percent([record.gap for record in records]),
        wanted,
        len(records) - diverged,
        diverged,
        failed,
        wanted - len(records) - failed,
    )


def _percent(fractions: Iterable[float | None]) -> Estimate | None:
    values = [100 * value for value in fractions if value is not None]
    return estimate(values) if values else None


def _conclusion(
    differences: Sequence[Difference], cells: Sequence[Cell], baseline: str, subject: str
) -> str:
    if baseline == subject:
        return f"Only {title(subject)} was run: there is nothing to compare it with."
    main = [one for one in differences if one.against == baseline]
    seeds = max((one.points.count for one in main if one.points), default=0)
    if seeds == 0:
        names = f"{title(subject)} and {title(baseline)}"
        return f"Nothing to conclude: no finished pair of {names}.{_incomplete(cells)}"
    counted = "1 seed, so no intervals" if seeds == 1 else f"{seeds} paired seeds"
    text = f"{title(subject).capitalize()} against {title(baseline)} ({counted}): "
    text += "; ".join(f"{one.condition}: {_verdict(one.points)}" for one in main) + "."
    for other in dict.fromkeys(one.against for one in differences if one.against != baseline):
        losses = [
            f"{one.condition} by {-one.points.mean:.1f} ± {one.points.half_width:.1f}"
            for one in differences
            if one.against == other and one.points and one.points.clear and one.points.mean < 0
        ]
        if losses:
            text += f" But {title(other)} beats {title(subject)}: {', '.join(losses)} points."
    return text + _incomplete(cells)


def _verdict(points: Estimate | None) -> str:
    if points is None:
        return "no finished pair"
    if points.half_width is None:
        return f"{points.mean:+.1f} points"
    if not points.clear:
        return f"no difference seen ({points.mean:+.1f} ± {points.half_width:.1f} points)"
    word = "wins" if points.mean > 0 else "loses"
    return f"{word} by {abs(points.mean):.1f} ± {points.half_width:.1f} points"


def _incomplete(cells: Sequence[Cell]) -> str:
    counts = {
        "diverged": sum(cell.diverged for cell in cells),
        "failed": sum(cell.failed for cell in cells),
        "missing": sum(cell.missing for cell in cells),
    }
    wanted = sum(cell.wanted for cell in cells)
    parts = [f"{count} {word}" for word, count in counts.items() if count]
    return f" Of {wanted} runs: {', '.join(parts)}." if parts else ""
