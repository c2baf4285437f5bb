"""How much another example of the batch moves an example's output."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from renorm.measure import examples
from renorm.measure.collection import Collected
from renorm.measure.passes import Mode
from renorm.measure.quantity import Plan, Quantity, Trial, told
from renorm.measure.records import MODEL, CrossExampleInfluence

_VALUES = 4096  # of the output of an example, that are compared
_NEEDED = (
    "It replaces an example of a batch, so it needs a batch of two examples or more, whose "
    "tensors all have the examples in their first dimension."
)

Place = tuple[str, str]  # a layer's name, and "layer" or "output"


class _Moved(NamedTuple):
    """What a replacement did at one place."""

    influence: float
    own: float
    by_running: float
    examples: int


class CrossExampleInfluenceQuantity(Quantity):
    """What replacing one example of a batch does to the others.

    The example j to be replaced is drawn, and so is the one that takes its place, from another
    batch if there is one. Of the output y of every layer, and of the model, by batch statistics,
    in units of the deviation of all values of y::

        influence = rms over i != j of (y_i' - y_i),  own = rms of (y_j' - y_j)

    By running statistics no other example may move, unless the model mixes examples in other
    ways; this is looked at in a batch of two, the replaced example and its neighbour. Where a
    layer is called several times, its first call counts; outputs without the examples in their
    first dimension do not.
    """

    tries = True

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._found: dict[Place, list[_Moved]] = {}

    def take_trial(self, trial: Trial) -> Iterator[str]:
        """Replace examples of some of the kept batches."""
        usable = [b for b in trial.batches if (examples.size(b) or 0) > 1]
        if not usable:
            yield _NEEDED
            return
        generator = np.random.default_rng(self.plan.seed)
        for i in range(self.plan.depth.replacements):
            self._replace(trial, usable, i % len(usable), generator)

    def records(self, collected: Mapping[str, Collected]) -> Iterator[CrossExampleInfluence]:
        """One for the model's output, and one for each layer."""
        for (layer, of), moved in self._found.items():
            figures = np.array([one[:3] for one in moved])
            with np.errstate(all="ignore"):
                influence, own, by_running = np.sqrt((figures**2).mean(0))
            yield CrossExampleInfluence(
                layer=layer,
                of=of,
                replaced=len(moved),
                examples=float(np.mean([one.examples for one in moved])),
                influence=told(influence),
                own=told(own),
                by_running=told(by_running),
            )

    def _replace(
        self, trial: Trial, batches: Sequence[Any], index: int, generator: np.random.Generator
    ) -> None:
        batch = batches[index]
        n = examples.size(batch) or 0
        j = int(generator.integers(n))
        order = list(range(n))
        other = batches[(index + 1) % len(batches)]
        if other is not batch and examples.alike([batch, other]):
            order[j] = n + int(generator.integers(examples.count(other)))
            changed = examples.taken(examples.joined([batch, other]), order)
        else:
            order[j] = (j + 1 + int(generator.integers(n - 1))) % n
            changed = examples.taken(batch, order)
        by_batch = self._moved(trial, batch, changed, "batch", j, n)
        two = [j, (j + 1) % n]  # enough to see whether one moves the other at all
        pair, other_pair = examples.taken(batch, two), examples.taken(changed, two)
        by_running = self._moved(trial, pair, other_pair, "running", 0, 2)
        for place, (influence, own) in by_batch.items():
            leak = by_running.get(place, (np.nan, np.nan))[0]
            self._found.setdefault(place, []).append(_Moved(influence, own, leak, n))

    def _moved(
        self, trial: Trial, batch: Any, changed: Any, mode: Mode, j: int, n: int
    ) -> dict[Place, tuple[float, float]]:
        """How far the others and the example itself moved, at every place."""
        before = self._outputs(trial, batch, mode, n)
        after = self._outputs(trial, changed, mode, n)
        found = {}
        for place, y in before.items():
            if place in after and after[place].shape == y.shape:
                squares = (after[place] - y).square().mean(1)
                scale = float(y.std(correction=0)) or np.nan
                others = float((squares.sum() - squares[j]) / (n - 1))
                own = float(squares[j])
                found[place] = (np.sqrt(max(others, 0.0)) / scale, np.sqrt(own) / scale)
        return found

    def _outputs(self, trial: Trial, batch: Any, mode: Mode, n: int) -> dict[Place, Tensor]:
        """Some values of each example's output, (N, values) in float64, at every place."""
        found: dict[Place, Tensor] = {}

        def look(name: str) -> Any:
            def hook(layer: nn.Module, args: Any, output: Any) -> None:
                if (name, "layer") not in found:
                    _take(found, (name, "layer"), output, n)

            return hook

        with ExitStack() as stack:
            for name, layer in self.plan.layers.items():
                stack.callback(layer.register_forward_hook(look(name)).remove)
            _take(found, (MODEL, "output"), trial.passes.run(batch, mode), n)
        return found


def _take(found: dict[Place, Tensor], place: Place, output: Any, n: int) -> None:
    parts = [t for t in examples.outputs(output) if t.dim() and len(t) == n and t.numel()]
    if parts:
        width = sum(t[0].numel() for t in parts)
        step = max(1, width // _VALUES)
        rows = [t.reshape(n, -1)[:, ::step].cpu().double() for t in parts]
        found[place] = examples.columns(rows)
