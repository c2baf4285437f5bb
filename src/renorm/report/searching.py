"""The search for learning rates: what was tried on validation examples, and what came of it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from renorm.report.records import Record
from renorm.report.statistics import Estimate, estimate
from renorm.report.wording import Unit, unit_for


@dataclass(frozen=True)
class Try:
    """One learning rate of one normalizer under one condition.

    Args:
        lr: learning rate.
        score: on the validation examples, over seeds; None if no run has finished.
        wanted, diverged, failed: runs, and what became of those without a score.
    """

    lr: float
    score: Estimate | None
    wanted: int
    diverged: int
    failed: int


@dataclass(frozen=True)
class Search:
    """All learning rates tried of one normalizer under one condition.

    Args:
        condition, normalizer: names.
        tries: by learning rate, rising.
        unit: of the scores.
    """

    condition: str
    normalizer: str
    tries: tuple[Try, ...]
    unit: Unit

    @property
    def chosen(self) -> float | None:
        """The learning rate with the best mean score, the lower of equals; None without a score.

        One whose runs all finished goes before one of which a run diverged or failed.
        """
        whole = [one for one in self.tries if one.score and not one.diverged and not one.failed]
        among = whole or [one for one in self.tries if one.score]
        best = max(among, key=lambda one: one.score.mean if one.score else 0.0, default=None)
        return None if best is None else best.lr

    @property
    def at_edge(self) -> bool:
        """Whether the chosen one is the lowest or highest tried: a better one may lie beyond."""
        return len(self.tries) > 1 and self.chosen in (self.tries[0].lr, self.tries[-1].lr)


def searched(records: Iterable[Record]) -> tuple[Search, ...]:
    """The searches that records of split ``validation`` tell of; other records are left aside.

    Args:
        records: of one setting (task, model, steps and so on), in any order.
    """
    tried = [one for one in records if one.specification.split == "validation"]
    places: dict[tuple[str, str], list[Record]] = {}
    for one in tried:
        place = one.specification.condition, one.specification.normalizer
        places.setdefault(place, []).append(one)
    return tuple(_search(*place, ones) for place, ones in places.items())


def _search(condition: str, normalizer: str, records: Sequence[Record]) -> Search:
    scored = [one for one in records if one.score is not None]
    first = (scored or records)[0]
    scores = [one.score for one in scored if one.score is not None]
    unit = unit_for(first.metric, first.percent, scores)
    rates = sorted({one.specification.lr for one in records})
    tries = tuple(
        _try(lr, [one for one in records if one.specification.lr == lr], unit) for lr in rates
    )
    return Search(condition, normalizer, tries, unit)


def _try(lr: float, records: Sequence[Record], unit: Unit) -> Try:
    values = [unit.shown(one.score) for one in records if one.score is not None]
    failed = sum(one.error is not None for one in records)
    diverged = len(records) - failed - len(values)
    return Try(lr, estimate(values) if values else None, len(records), diverged, failed)
