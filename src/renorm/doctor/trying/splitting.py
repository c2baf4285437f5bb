"""Which batches a seed trains on, in which order, and by which it is judged."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from renorm.calibration.procedure import check_batches
from renorm.errors import ArgumentError
from renorm.measure import examples
from renorm.measure.sampling import Reservoir

EVERY = 4  # one batch of so many is held out
EXAMPLES = 1024  # are kept where the batches are so small that those of the steps are fewer


class Share(NamedTuple):
    """What a seed is given: batches to train on in any order, and to be judged by."""

    training: Sequence[Any]
    held_out: Sequence[Any]


def kept(batches: Iterable[Any], steps: int, seed: int) -> list[Any]:
    """A sample of the batches in the order they come, read once: enough for so many steps.

    At most ``steps`` and a third for what is held out, or those of ``EXAMPLES`` examples.
    """
    check_batches(batches)
    sample: Reservoir[Any] | None = None
    for batch in batches:
        if sample is None:
            size = max(examples.count(batch), 1)
            most = max(math.ceil(steps * EVERY / (EVERY - 1)), math.ceil(EXAMPLES / size))
            sample = Reservoir(most, seed)
        sample.offer(batch)
    return [] if sample is None else sample.kept


def shares(training: Sequence[Any], held_out: Sequence[Any] | None, seeds: int) -> list[Share]:
    """What each seed is given.

    Batches stay whole, since their size and composition are what is on trial. Of the training
    batches every fourth is held out, of another four for each seed: neighbours in time or of a
    class are then on both sides. Batches for judging that were given are dealt out to the seeds,
    or the examples of each where there are too few, so that what the seeds say is independent;
    where neither can be, every seed has all of them.

    Raises:
        ArgumentError: too few batches.
    """
    if held_out is None:
        _check_number("batches", training, EVERY, "three to train on and one to judge by")
        parts = [training[seed % EVERY :: EVERY] for seed in range(seeds)]
        rests = [
            [one for i, one in enumerate(training) if i % EVERY != seed % EVERY]
            for seed in range(seeds)
        ]
        return [Share(rest, part) for rest, part in zip(rests, parts, strict=True)]
    _check_number("batches", training, 1, "to train on")
    _check_number("held_out", held_out, 1, "to judge by")
    return [Share(training, _dealt(held_out, seed, seeds)) for seed in range(seeds)]


def in_order(batches: Sequence[Any], steps: int, seed: Sequence[int]) -> Iterator[Any]:
    """So many batches: all of them in a random order, and again in another."""
    generator = np.random.default_rng(list(seed))
    order: list[int] = []
    for _ in range(steps):
        order = order or generator.permutation(len(batches)).tolist()
        yield batches[order.pop()]


def _dealt(batches: Sequence[Any], seed: int, seeds: int) -> Sequence[Any]:
    if len(batches) >= seeds:
        return batches[seed::seeds]
    sizes = [examples.size(batch) or 0 for batch in batches]
    if min(sizes) < seeds:
        return batches
    return [
        examples.taken(batch, range(seed, size, seeds))
        for batch, size in zip(batches, sizes, strict=True)
    ]


def _check_number(name: str, batches: Sequence[Any], least: int, why: str) -> None:
    if len(batches) < least:
        more = ", or some of their own to judge by as held_out" if least > 1 else ""
        raise ArgumentError(
            f"{name} are at least {least}, {why}, got {len(batches)}. Give more{more}."
        )
