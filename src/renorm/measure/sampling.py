"""A sample of a stream, of bounded size."""

from typing import Generic, TypeVar

import numpy as np

T = TypeVar("T")


class Reservoir(Generic[T]):
    """A uniform sample without replacement of all that was offered, in order of arrival.

    Args:
        size: of the sample; all there is while that is no more.
        seed: of the draws, which touch no other generator.

    Source: Vitter 1985, "Random sampling with a reservoir", algorithm R.
    """

    def __init__(self, size: int, seed: int) -> None:
        self._size, self._generator = size, np.random.default_rng(seed)
        self._kept: list[tuple[int, T]] = []
        self.offered = 0

    def place(self) -> int | None:
        """Where the next one goes; None if it is not kept, so it need not be made."""
        place = self.offered
        self.offered += 1
        if place < self._size:
            return place
        place = int(self._generator.integers(self.offered))
        return place if place < self._size else None

    def put(self, place: int, one: T) -> None:
        """Keep one at a place that ``place`` gave."""
        if place == len(self._kept):
            self._kept.append((self.offered, one))
        else:
            self._kept[place] = (self.offered, one)

    def offer(self, one: T) -> None:
        """Keep one, or not."""
        place = self.place()
        if place is not None:
            self.put(place, one)

    @property
    def kept(self) -> list[T]:
        """The sample."""
        return [one for _, one in sorted(self._kept, key=lambda entry: entry[0])]
