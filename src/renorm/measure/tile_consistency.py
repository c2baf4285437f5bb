"""Dense predictions of whole images against those of their tiles."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from renorm.measure import examples
from renorm.measure.collection import Collected
from renorm.measure.inputs import Array
from renorm.measure.passes import Mode
from renorm.measure.quantity import Plan, Quantity, Trial, told
from renorm.measure.records import MODEL, NOT_DENSE, TileConsistency

_STRIDE = 32  # of usual encoders: tiles are multiples of it where they are that large


class TileConsistencyQuantity(Quantity):
    """What halving every spatial dimension, and predicting tile by tile, does to predictions.

    In eval mode a layer maps every value by constants, so predictions differ from those of the
    whole image only as far as the receptive field reaches over a cut. Far from the cuts they may
    not, unless the model has operations over the whole of an image, such as squeeze and
    excitation, or layers that normalize by their input in eval mode too. By batch statistics they
    differ everywhere.
    """

    tries = True

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._found: list[tuple[float, float, float]] = []
        self._tile: tuple[int, ...] = ()

    def take_trial(self, trial: Trial) -> Iterator[str]:
        """Cut the images of some of the kept batches."""
        for batch in trial.batches[: self.plan.depth.replacements]:
            why = self._cut(trial, batch)
            if why is not None:
                yield why
                return

    def records(self, collected: Mapping[str, Collected]) -> Iterator[TileConsistency]:
        """One for the model."""
        if self._found:
            with np.errstate(all="ignore"):
                everywhere, inside, by_batch = np.sqrt((np.array(self._found) ** 2).mean(0))
            yield TileConsistency(
                layer=MODEL,
                batches=len(self._found),
                tile=self._tile,
                difference=told(everywhere),
                interior=told(inside),
                interior_by_batch=told(by_batch),
            )

    def _cut(self, trial: Trial, batch: Any) -> str | None:
        """Compare one batch with its tiles, or say why not."""
        x = next(examples.leaves(batch), None)
        if x is None or x.dim() not in (4, 5):
            return NOT_DENSE
        one = examples.taken(batch, [0]) if examples.size(batch) else batch
        probe = _first(trial.passes.run(one, "running"))  # spares the rest if it is not dense
        if probe is None or probe.dim() != x.dim():
            return NOT_DENSE
        whole = _first(trial.passes.run(batch, "running"))
        if whole is None or len(whole) != len(x):
            return NOT_DENSE
        tile, given = _tile(x.shape[2:]), whole.shape[2:]
        if not all(tile) or any(
            t * g % s for t, g, s in zip(tile, given, x.shape[2:], strict=True)
        ):
            return NOT_DENSE
        places = [_Place.of(corner, tile, x.shape[2:], given) for corner in _corners(tile)]
        running = self._compared(trial, batch, x.shape[2:], places, "running", whole)
        if isinstance(running, str):
            return running
        by_batch = _first(trial.passes.run(batch, "batch"))
        assert by_batch is not None
        batched = self._compared(trial, batch, x.shape[2:], places, "batch", by_batch)
        if isinstance(batched, str):
            return batched
        self._tile = tile
        self._found.append((*running, batched[1]))
        return None

    def _compared(
        self,
        trial: Trial,
        batch: Any,
        size: Sequence[int],
        places: "Sequence[_Place]",
        mode: Mode,
        whole: Tensor,
    ) -> tuple[float, float] | str:
        """The difference everywhere and far from the cuts, in deviations of the whole output."""
        squares: list[Array] = []
        far: list[Array] = []
        for place in places:
            try:
                part = _first(trial.passes.run(examples.cropped(batch, size, place.given), mode))
            except Exception as error:  # of the user's model, and reported
                return f"The model does not run on tiles: {type(error).__name__}: {error}"
            expected = whole[(..., *place.output)]
            if part is None or part.shape != expected.shape:
                return NOT_DENSE
            apart = (part.double() - expected.double()).square().mean((0, 1)).cpu().numpy()
            squares.append(apart.ravel())
            far.append(apart[place.interior])
        scale = float(whole.double().std(correction=0)) or np.nan
        everywhere, inside = (np.sqrt(np.concatenate(each).mean()) for each in (squares, far))
        return float(everywhere / scale), float(inside / scale)


class _Place(NamedTuple):
    """A tile: where it lies in the input and the output, and what of it is far from cuts."""

    given: tuple[slice, ...]
    output: tuple[slice, ...]
    interior: NDArray[np.bool_]  # the half, in every dimension, that is farther from the cut

    @classmethod
    def of(
        cls, corner: tuple[int, ...], tile: Sequence[int], size: Sequence[int], out: Sequence[int]
    ) -> "_Place":
        """The tile at a corner, 0 or 1 in every dimension."""
        given = tuple(slice(k * t, (k + 1) * t) for k, t in zip(corner, tile, strict=True))
        lengths = [t * o // s for t, o, s in zip(tile, out, size, strict=True)]
        output = tuple(slice(k * n, (k + 1) * n) for k, n in zip(corner, lengths, strict=True))
        far = np.ones(lengths, bool)
        for axis, (k, n) in enumerate(zip(corner, lengths, strict=True)):
            before, after = k == 1, (k + 1) * tile[axis] < size[axis]  # the sides that are cuts
            room = (n - max(1, n // 2)) // (before + after)
            along = (np.arange(n) >= room * before) & (np.arange(n) < n - room * after)
            far &= along.reshape([-1 if i == axis else 1 for i in range(len(lengths))])
        return cls(given, output, far)


def _first(output: Any) -> Tensor | None:
    return next(iter(examples.outputs(output)), None)


def _tile(size: Sequence[int]) -> tuple[int, ...]:
    halves = [s // 2 for s in size]
    return tuple(h // _STRIDE * _STRIDE if h >= _STRIDE else h for h in halves)


def _corners(tile: Sequence[int]) -> Iterator[tuple[int, ...]]:
    return product((0, 1), repeat=len(tile))
