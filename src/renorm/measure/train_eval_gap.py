"""The gap between train and eval mode, split into stale statistics and the noise of batches."""

import math
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from renorm.measure.collection import Collected
from renorm.measure.inputs import Array, Call, Population
from renorm.measure.layers import eps_of, statistics_of
from renorm.measure.quantity import Compared, Plan, Quantity, told
from renorm.measure.records import MODEL, OutputGap, Record, TrainEvalGap
from renorm.measure.streams import Moments, Vectors

# batch less running, running less population, batch less population
_CONTRASTS = np.array([[1.0, -1.0, 0.0], [0.0, 1.0, -1.0], [1.0, 0.0, -1.0]])


class TrainEvalGapQuantity(Quantity):
    """What differs between batch, running and population statistics.

    Of every layer, on the input it has in train mode: each mode is ``slope * x + offset`` for a
    group and a channel, so the mean square of a difference follows from the mean and the variance
    of x. Of the model: its outputs and losses on the same batches.
    """

    compares = True

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._running = {name: _running(layer) for name, layer in plan.layers.items()}
        self._squares = [Moments(), Moments(), Moments()]
        self._outputs = Moments()
        self._losses = Vectors(3)
        self._batches, self._alike = 0, True

    def take_compared(self, compared: Compared) -> None:
        """Outputs and losses of a batch."""
        self._batches += 1
        if compared.losses is not None:
            self._losses.add(np.array(compared.losses))
        for tensors in zip(compared.batch, compared.running, compared.population, strict=False):
            self._take_outputs(*tensors)
        counts = {len(each) for each in compared[:3]}
        self._alike = self._alike and len(counts) == 1

    def records(self, collected: Mapping[str, Collected]) -> Iterator[Record]:
        """One for the model, and one for each layer with a group of two values."""
        if self._batches:
            yield self._of_model()
        for name, found in collected.items():
            if found.rows is not None:
                eps = eps_of(self.plan.layers[name])
                yield _of_layer(name, found.rows, found.population, self._running[name], eps)

    def _take_outputs(self, batch: Tensor, running: Tensor, population: Tensor) -> None:
        if not batch.shape == running.shape == population.shape:
            self._alike = False
            return
        a, b, c = (t.double().flatten().cpu() for t in (batch, running, population))
        if c.numel():
            mean = float(c.mean())
            self._outputs.add(c.numel(), mean, float((c - mean).square().sum()))
            for moments, difference in zip(self._squares, (a - b, b - c, a - c), strict=True):
                moments.add(c.numel(), float(difference.square().mean()), 0.0)

    def _of_model(self) -> OutputGap:
        scale = np.sqrt(self._outputs.var)
        with np.errstate(all="ignore"):
            gaps = [np.sqrt(np.float64(m.mean)) / scale for m in self._squares]
        gap, staleness, noise = (told(g) if self._alike else None for g in gaps)
        means = self._losses.mean if self._losses.n else [math.nan] * 3
        by_batch, by_running, by_population = map(told, means)
        contrasts = (self._losses.contrast(weights) for weights in _CONTRASTS)
        loss_gap, loss_staleness, loss_noise = ((told(m), told(e)) for m, e in contrasts)
        return OutputGap(
            layer=MODEL,
            batches=self._batches,
            gap=gap,
            staleness=staleness,
            noise=noise,
            deviation=told(scale),
            loss_batch=by_batch,
            loss_running=by_running,
            loss_population=by_population,
            loss_gap=loss_gap,
            loss_staleness=loss_staleness,
            loss_noise=loss_noise,
        )


def _running(layer: torch.nn.Module) -> tuple[Array, Array] | None:
    """Copies of the running statistics, in float64."""
    statistics = statistics_of(layer)
    if statistics is None:
        return None
    mean, var = (t.detach().cpu().double().numpy().copy() for t in statistics)
    return mean, var


def _of_layer(
    name: str, rows: Call, population: Population, running: tuple[Array, Array] | None, eps: float
) -> TrainEvalGap:
    with np.errstate(all="ignore"):
        by_population = _eval(rows, population.mean, population.var, eps)
        noise = _rms(rows, (rows.slope, rows.offset), by_population)
        if running is None:
            return TrainEvalGap(name, None, None, told(noise), None, None)
        mean, var = running
        gap = _rms(rows, (rows.slope, rows.offset), _eval(rows, mean, var, eps))
        sigma, old = np.sqrt(population.var + eps), np.sqrt(var + eps)
        shift, log_ratio = (mean - population.mean) / sigma, np.log(old / sigma)
        stale = (1 / old - 1 / sigma) ** 2 * population.var + (shift * sigma / old) ** 2
        return TrainEvalGap(
            name,
            told(gap),
            told(np.sqrt(stale.mean())),
            told(noise),
            told(np.sqrt((shift**2).mean())),
            told(np.sqrt((log_ratio**2).mean())),
        )


def _eval(rows: Call, mean: Array, var: Array, eps: float) -> tuple[Array, Array]:
    """Slope and offset about the groups' means, by given statistics."""
    slope = 1 / np.sqrt(var + eps)
    return slope, (rows.mean - mean) * slope


def _rms(rows: Call, one: tuple[Array, Array], other: tuple[Array, Array]) -> float:
    squares = (one[0] - other[0]) ** 2 * rows.var + (one[1] - other[1]) ** 2
    weight = rows.values[:, None] / (rows.values.sum() * squares.shape[1])
    return float(np.sqrt((weight * squares).sum()))
