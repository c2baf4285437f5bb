"""What a survey or a look at the loss found: one record a layer and quantity, without torch.

Figures are numbers without a unit unless one is given. None stands for what could not be told,
also where it would not be finite.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

MODEL = "(model)"  # the layer that a record about the whole model names
AS_IT_IS, FURTHER = "as it is", "further training"  # trials without a fix
# the reason of a note on tiles where the model predicts no maps, and nothing is missing
NOT_DENSE = (
    "It cuts images into tiles, so it needs batches whose first tensor is (N, C, H, W) or (N, C, "
    "D, H, W), and a model whose first output is as that, at a fixed fraction of the size."
)

R = TypeVar("R", bound="Record")


@dataclass(frozen=True)
class Record:
    """What was found of a layer.

    Args:
        layer: its name in the model, the first if it has several; ``"(model)"`` for the model.
    """

    layer: str


@dataclass(frozen=True)
class LayerFacts(Record):
    """What a layer is, before anything is run but for its input.

    Args:
        type: name of its class.
        channels: C.
        eps: added to variances.
        momentum: update rate of the running statistics, 0 to 1; None for the plain average, and
            for layers that never update.
        affine: whether it has a weight or a bias.
        statistics: what becomes of the running statistics in training: ``"updated"``,
            ``"frozen"``, ``"not updated"``, or ``"none"`` where there are none.
        training: its mode when the survey began.
        updates: of the running statistics so far; None where they are not counted.
        limits: the schedule of r_max and d_max in words, ``"batch norm"`` for layers without.
        r_max, d_max: the limits now, 1 and 0 for batch norm.
        microbatch: examples that share statistics; None for the whole batch.
        sync: what processes share: ``"batch"`` or ``"running"`` statistics, or empty.
        learns: whether its weight or bias has requires_grad.
        dtype: of the running statistics, or of the weight; empty for a layer with neither.
        input_dtype: of what it normalized; None if it was not called.
        source: the module whose output it took, in all calls; None if that is no module's own
            output, or of several.
        source_bias: whether that module adds a bias, which the mean takes away again; None
            without source.
        names: all names of the layer; several for one that is shared.
        calls: in one forward, the first of the survey.
    """

    type: str
    channels: int
    eps: float
    momentum: float | None
    affine: bool
    statistics: str
    training: bool
    updates: int | None
    limits: str
    r_max: float
    d_max: float
    microbatch: int | None
    sync: str
    learns: bool
    dtype: str
    input_dtype: str | None
    source: str | None
    source_bias: bool | None
    names: tuple[str, ...]
    calls: int


@dataclass(frozen=True)
class Note(Record):
    """A quantity that was left out, or measured in part.

    Args:
        quantity: its name.
        reason: why, as a sentence.
    """

    quantity: str
    reason: str


@dataclass(frozen=True)
class BatchNoise(Record):
    """How far the statistics of batches lie from the population's.

    ``d = (mu_B - mu) / sigma`` and ``log r = log(sigma_B / sigma)``, over groups of examples with
    statistics of their own (batches, or microbatches), and channels; mu and sigma are those of
    the population, eps inside the root. None where no channel has finite statistics.

    Args:
        groups: that were seen.
        kept: of them, drawn at random, from which the figures are.
        channels: whose statistics are finite.
        log_r, d: their 5, 25, 50, 75 and 95 % quantiles.
        log_r_rms, d_rms: their root mean squares.
        beyond_r: pairs of a limit r_max and the fraction of r outside of 1 / r_max to r_max.
        beyond_d: pairs of a limit d_max and the fraction of d outside of -d_max to d_max.
    """

    groups: int
    kept: int
    channels: int
    log_r: tuple[float, ...] | None
    d: tuple[float, ...] | None
    log_r_rms: float | None
    d_rms: float | None
    beyond_r: tuple[tuple[float, float], ...] | None
    beyond_d: tuple[tuple[float, float], ...] | None


@dataclass(frozen=True)
class TrainEvalGap(Record):
    """What a layer gives in train mode against eval mode, before weight and bias.

    Root mean squares over all values of the input it has in train mode, in units of the
    normalized output, whose deviation is about 1; from the kept groups of ``BatchNoise``.

    Args:
        gap: by the batch, as the layer does it (batch renorm within its limits), less by running
            statistics; None without running statistics.
        staleness: by running less by population statistics, of all values.
        noise: by the batch less by population statistics.
        shift: root mean square over channels of (running mean - mean) / sigma of the population.
        log_ratio: root mean square over channels of log(running sigma / sigma).
    """

    gap: float | None
    staleness: float | None
    noise: float | None
    shift: float | None
    log_ratio: float | None


@dataclass(frozen=True)
class OutputGap(Record):
    """What the whole model gives by batch, running and population statistics.

    Of all floating-point outputs, on the same batches, without dropout. None for outputs that
    have other shapes in other modes, and for losses without a loss.

    Args:
        batches: that were compared.
        gap: root mean square of the output by the batch less that by running statistics, in
            units of ``deviation``.
        staleness: running less population, likewise.
        noise: batch less population, likewise.
        deviation: of all values of the output by population statistics.
        loss_batch, loss_running, loss_population: means over batches.
        loss_gap: mean of the loss by the batch less that by running statistics, and its standard
            error over batches, None for a single one.
        loss_staleness: running less population, likewise.
        loss_noise: batch less population, likewise.
    """

    batches: int
    gap: float | None
    staleness: float | None
    noise: float | None
    deviation: float | None
    loss_batch: float | None
    loss_running: float | None
    loss_population: float | None
    loss_gap: tuple[float | None, float | None]
    loss_staleness: tuple[float | None, float | None]
    loss_noise: tuple[float | None, float | None]


@dataclass(frozen=True)
class EffectiveCount(Record):
    """How many values the statistics of a layer are of.

    Args:
        least, most: values of a channel in a group of examples with statistics of its own.
        single: fraction of the groups with one value, which has no variance.
        positions: of an example, on average over those that count.
        effective: independent values that an example is worth, at most about ``positions``: the
            variance of all values over that of the examples' means; median over channels.
        effective_05: its 5 % quantile over channels.
        examples: in a batch, on average.
        observed: independent values that a batch is worth by the spread of the means of batches:
            the variance of all values over it; median over channels. Below ``examples *
            effective`` if the examples of a batch depend on each other. None of a single batch.
    """

    least: int
    most: int
    single: float
    positions: float | None
    effective: float | None
    effective_05: float | None
    examples: float | None
    observed: float | None


@dataclass(frozen=True)
class BatchDependence(Record):
    """Whether the examples of a batch depend on each other.

    Args:
        batches, examples: kept, from which the figures are.
        channels: of them.
        ratio: variance of the means of batches over what independent draws give, in the mean over
            channels; 1 for independent examples, N for batches of N equal ones, below 1 for
            batches that are more alike than chance.
        correlation: of two examples of a batch (intraclass), 0 for independent ones, at most 1.
        p_more: probability of such a ratio or a larger one for independent examples.
        p_less: of such a ratio or a smaller one.
        permutations: of the examples between batches, that both are ranks among.
    """

    batches: int
    examples: int
    channels: int
    ratio: float | None
    correlation: float | None
    p_more: float | None
    p_less: float | None
    permutations: int


@dataclass(frozen=True)
class ChannelHealth(Record):
    """Which channels of a layer carry nothing, by their indices; a channel may be in several.

    By all values of its input in train mode, and the statistics of the population.

    Args:
        channels: C.
        largest: magnitude of the input in any channel; None if that is not finite, or the layer
            was not called.
        headroom: that, as a fraction of the largest number that the dtype holds, 0 to 1.
        bad_statistics: running mean or variance not finite, or a variance below 0.
        bad_parameters: weight or bias not finite.
        constant: all values are equal.
        dead: the output varies by less than 0.001 (deviation), by its weight.
        negative: no output is above 0, so nothing would pass a ReLU.
        eps_dominated: variance below eps, so the output varies by less than weight / sqrt(2).
        saturated: 95 % of the values or more lie within 0.001 of the range of their batch from
            its ends; not of channels with fewer than 16 values, or masked.
        not_finite: the input has NaN or infinite values.
    """

    channels: int
    largest: float | None
    headroom: float | None
    bad_statistics: tuple[int, ...]
    bad_parameters: tuple[int, ...]
    constant: tuple[int, ...]
    dead: tuple[int, ...]
    negative: tuple[int, ...]
    eps_dominated: tuple[int, ...]
    saturated: tuple[int, ...]
    not_finite: tuple[int, ...]


@dataclass(frozen=True)
class CrossExampleInfluence(Record):
    """How far the other examples of a batch move when one of them is replaced.

    Root mean squares in units of the deviation of all values of the output.

    Args:
        of: ``"layer"`` for the output of the layer, ``"output"`` for that of the model.
        replaced: examples, one at a time.
        examples: in a batch, on average.
        influence: on the others, by batch statistics; None where the output does not vary.
        own: on the output at the place of the example itself, likewise.
        by_running: on the other one of a batch of two, by running statistics: what does not come
            from normalization.
    """

    of: str
    replaced: int
    examples: float
    influence: float | None
    own: float | None
    by_running: float | None


@dataclass(frozen=True)
class CompositionShift(Record):
    """The loss by batch statistics on batches as they come, and with their examples reshuffled.

    Args:
        batches: that were mixed.
        shuffles: of them.
        loss_composed: mean over the examples of the batches as they come.
        loss_shuffled: mean over the same examples in batches of the same sizes, put together at
            random.
        shift: ``loss_shuffled - loss_composed``, above 0 if the model relies on the composition.
        error: standard error of the shift, all batches taken as independent.
    """

    batches: int
    shuffles: int
    loss_composed: float | None
    loss_shuffled: float | None
    shift: float | None
    error: float | None


@dataclass(frozen=True)
class TileConsistency(Record):
    """Predictions of whole images against those of their tiles, halves in every dimension.

    Root mean squares in units of the deviation of the output for whole images.

    Args:
        batches: that were cut.
        tile: its size in pixels.
        difference: in eval mode, over all positions.
        interior: over the half of each tile, in every dimension, that is farther from the cuts;
            about 0 unless the receptive field is larger than that.
        interior_by_batch: the same by batch statistics.
    """

    batches: int
    tile: tuple[int, ...]
    difference: float | None
    interior: float | None
    interior_by_batch: float | None


@dataclass(frozen=True)
class Setting(Record):
    """What the model is for, as its user says it; no measurement can tell.

    Args:
        purpose: ``"training"``, ``"finetuning"`` or ``"export"``.
        steps: updates of the statistics that the run still does; None if unknown.
        accumulation: forwards whose gradients are added up to one step.
        processes: that train together, each on its share of a batch.
    """

    purpose: str
    steps: int | None
    accumulation: int
    processes: int


@dataclass(frozen=True)
class LimitsAhead(Record):
    """Where the limits of a layer of batch renorm will be at the end of the run.

    Args:
        steps: updates until then.
        r_max, d_max: the limits then.
    """

    steps: int
    r_max: float
    d_max: float


@dataclass(frozen=True)
class Converted(Record):
    """A layer that has another class than in the model before it was converted.

    Args:
        before, after: names of the classes; ``after`` is empty for a layer that is gone.
        was_renorm: whether it was a layer of this package before.
        is_renorm: whether it is one now.
    """

    before: str
    after: str
    was_renorm: bool
    is_renorm: bool


@dataclass(frozen=True)
class RankSpread(Record):
    """How far the running statistics of processes that train together lie apart.

    Args:
        processes: that were asked.
        shift: largest, over processes and channels, of |mean - mean of all| / sigma of all.
        log_ratio: largest, likewise, of |log(sigma / sigma of all)|.
    """

    processes: int
    shift: float | None
    log_ratio: float | None


@dataclass(frozen=True)
class FixTrial(Record):
    """What a fix was worth, from the given weights, on batches that were held out.

    Args:
        fix: its name; ``AS_IT_IS`` for the given model, which all are compared to, ``FURTHER`` for
            training it without a fix, for as many steps, and calibration after that.
        code: that applies it, to be pasted.
        steps: of training from the given weights; 0 for fixes that do not train.
        seeds: of the order of the batches; the entries of the next two are of these.
        losses: in eval mode on the batches held out; None where training diverged.
        gains: loss of the given model less that.
        cost: median time of a step over that without a fix; None without training.
        failure: why it could not be tried; empty if it could.
    """

    fix: str
    code: str
    steps: int
    seeds: tuple[int, ...]
    losses: tuple[float | None, ...]
    gains: tuple[float | None, ...]
    cost: float | None
    failure: str


@dataclass(frozen=True)
class Landscape(Record):
    """The loss on one batch along the negative gradient: what ``landscape`` finds.

    Args:
        mode: ``"train"`` or ``"eval"``.
        step_sizes: the multiples s of the gradient that the parameters are moved by.
        loss: at the parameters themselves.
        gradient_norm: l2 norm of the gradient there.
        losses: after each step; infinite where it is not finite.
        distances: l2 distance between the gradients before and after each step; infinite where
            that after it is not finite.
        cosines: of the angle between the two; None where one is 0 or not finite.
        smoothness: the largest distance over the length of its step; None where the gradient is 0.
    """

    mode: str
    step_sizes: tuple[float, ...]
    loss: float
    gradient_norm: float
    losses: tuple[float, ...]
    distances: tuple[float, ...]
    cosines: tuple[float | None, ...]
    smoothness: float | None

    @property
    def loss_range(self) -> tuple[float, float]:
        """The least and the largest of the losses."""
        return min(self.losses), max(self.losses)

    @property
    def distance_range(self) -> tuple[float, float]:
        """The least and the largest of the distances: the predictiveness of the gradient."""
        return min(self.distances), max(self.distances)


@dataclass(frozen=True)
class CovariateShift(Record):
    """How the gradient of a layer changes as the layers before it are updated.

    Args:
        parameters: of the layer, by name.
        norm: l2 norm of their gradient before the update.
        shifted_norm: the same with the layers before it updated; infinite if it is not finite.
        distance: l2 distance between the two gradients; infinite if that is not finite.
        cosine: of the angle between them; None where one is 0 or not finite.
    """

    parameters: tuple[str, ...]
    norm: float
    shifted_norm: float
    distance: float
    cosine: float | None


@dataclass(frozen=True)
class GradientReduction(Record):
    """What batch normalization takes away of the gradient of its input, per channel.

    Sums over all groups of examples that are normalized apart; ``predicted`` is ``scaled - mean -
    projection``, and equal to ``measured`` up to rounding.

    Args:
        output: squared l2 norm of the gradient of the layer's output.
        scaled: that, times the square of the factor that the layer multiplies its input by.
        mean: of it, what the constant direction has.
        projection: of it, what the direction of the normalized input has.
        measured: squared l2 norm of the gradient of the input.
    """

    output: tuple[float, ...]
    scaled: tuple[float, ...]
    mean: tuple[float, ...]
    projection: tuple[float, ...]
    measured: tuple[float, ...]

    @property
    def predicted(self) -> tuple[float, ...]:
        """The squared l2 norm of the gradient of the input, from that of the output."""
        parts = zip(self.scaled, self.mean, self.projection, strict=True)
        return tuple(scaled - mean - projection for scaled, mean, projection in parts)


@dataclass(frozen=True)
class Survey:
    """All that was measured of a model by some batches.

    Args:
        model: name of its class.
        training: its mode when the survey began.
        depth: ``"quick"``, ``"standard"`` or ``"deep"``.
        seed: of what was drawn.
        batches: that were read to the end by every pass that was asked for.
        examples: in them.
        complete: whether all that was asked for was measured.
        interrupted: whether it was ended by Ctrl-C; the records are of what came before.
        records: in the order of the model's layers, quantity after quantity.
    """

    model: str
    training: bool
    depth: str
    seed: int
    batches: int
    examples: int
    complete: bool
    interrupted: bool
    records: tuple[Record, ...]

    def of(self, kind: type[R], layer: str | None = None) -> tuple[R, ...]:
        """The records of a kind, of all layers or one."""
        found = (one for one in self.records if isinstance(one, kind))
        return tuple(one for one in found if layer is None or one.layer == layer)

    def layers(self) -> Iterator[str]:
        """Names of the normalization layers, in the order of the model."""
        return (one.layer for one in self.of(LayerFacts))
