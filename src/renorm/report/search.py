"""Learning rates that were tried on validation data, and the one that each normalizer is given."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from renorm.report.records import Record


@dataclass(frozen=True)
class Searched:
    """What one normalizer reached with each rate under one condition.

    Args:
        normalizer, condition: names.
        scores: (rate, mean validation score over the seeds), by rate; None if a run diverged or
            failed.
        chosen: the rate with the best score, the smaller of equals; None if no run finished.
        at_edge: whether the chosen one is the smallest or largest of several tried, so that a
            better one may lie outside.
    """

    normalizer: str
    condition: str
    scores: tuple[tuple[float, float | None], ...]
    chosen: float | None
    at_edge: bool


def searched(records: Iterable[Record]) -> tuple[Searched, ...]:
    """The search for each normalizer and condition, from its validation records alone."""
    places: dict[tuple[str, str], dict[float, list[float | None]]] = {}
    for record in records:
        one = record.specification
        if one.split == "validation":
            rates = places.setdefault((one.normalizer, one.condition), {})
            rates.setdefault(one.lr, []).append(record.score)
    return tuple(
        _summary(normalizer, condition, rates) for (normalizer, condition), rates in places.items()
    )


def chosen_rates(records: Iterable[Record]) -> dict[tuple[str, str], float]:
    """(normalizer, condition) -> the chosen rate, where there is one."""
    return {
        (one.normalizer, one.condition): one.chosen
        for one in searched(records)
        if one.chosen is not None
    }


def _summary(normalizer: str, condition: str, rates: dict[float, list[float | None]]) -> Searched:
    scores = tuple((rate, _mean(rates[rate])) for rate in sorted(rates))
    finished = [(score, -rate) for rate, score in scores if score is not None]
    chosen = -max(finished)[1] if finished else None
    edge = len(scores) > 1 and chosen in (scores[0][0], scores[-1][0])
    return Searched(normalizer, condition, scores, chosen, edge)


def _mean(values: list[float | None]) -> float | None:
    finished = [value for value in values if value is not None]
    return statistics.fmean(finished) if len(finished) == len(values) else None
