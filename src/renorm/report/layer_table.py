"""All layers as a table: what each is, and the figures that matter."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from renorm.measure.records import (
    BatchDependence,
    BatchNoise,
    ChannelHealth,
    CrossExampleInfluence,
    EffectiveCount,
    LayerFacts,
    LimitsAhead,
    Record,
    Survey,
    TrainEvalGap,
)
from renorm.report import health_plot
from renorm.report.diagnosis_wording import name_of, number
from renorm.report.layer_plots import by_layer


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Args:
        heading: above it.
        about: what it holds, for the legend.
        kind: of the records it is from.
        text: of a record.
        words: whether it holds words, and not numbers.
    """

    heading: str
    about: str
    kind: type[Record]
    text: Callable[[Any], str]
    words: bool = False


def _probability(one: BatchDependence) -> str:
    found = [p for p in (one.p_more, one.p_less) if p is not None]
    return number(min(found)) if found else "-"


def _range(one: EffectiveCount) -> str:
    return f"{one.least:,}" if one.least == one.most else f"{one.least:,} to {one.most:,}"


def _momentum(one: LayerFacts) -> str:
    return number(one.momentum) if one.momentum is not None else "average or none"


def _states(one: ChannelHealth) -> str:
    found = health_plot.counts(one)
    return ", ".join(f"{count} {words}" for words, count in found.items()) or "none"


def _limits(one: LayerFacts) -> str:
    if one.limits == "batch norm":
        return one.limits
    return f"{one.limits}; now r {number(one.r_max)}, d {number(one.d_max)}"


COLUMNS = (
    Column("class", "of the layer.", LayerFacts, lambda one: one.type, True),
    Column("channels", "of the layer.", LayerFacts, lambda one: f"{one.channels:,}"),
    Column("running statistics", "what training does to them.", LayerFacts,
           lambda one: one.statistics, True),
    Column("momentum", "their rate of update, in torch's convention.", LayerFacts, _momentum),
    Column("mode", "when the measurement began.", LayerFacts,
           lambda one: "train" if one.training else "eval", True),
    Column("limits", "of batch renorm.", LayerFacts, _limits, True),
    Column("limits at the end", "of the run, r and d.", LimitsAhead,
           lambda one: f"r {number(one.r_max)}, d {number(one.d_max)}", True),
    Column("values", "of a channel, that a batch's statistics are of.", EffectiveCount, _range),
    Column("gap", "between train and eval mode, in standard deviations.", TrainEvalGap,
           lambda one: number(one.gap)),
    Column("staleness", "the part of the gap from running statistics.", TrainEvalGap,
           lambda one: number(one.staleness)),
    Column("noise", "the part from batches.", TrainEvalGap, lambda one: number(one.noise)),
    Column("log r", "root mean square of the logarithm of r.", BatchNoise,
           lambda one: number(one.log_r_rms)),
    Column("d", "root mean square of d.", BatchNoise, lambda one: number(one.d_rms)),
    Column("ratio", "variance of batch means over that of independent examples.",
           BatchDependence, lambda one: number(one.ratio)),
    Column("p", "of that ratio, by reshuffling.", BatchDependence, _probability),
    Column("influence", "of an example on the others of its batch, in train mode.",
           CrossExampleInfluence, lambda one: number(one.influence)),
    Column("bad channels", "that carry nothing or are not finite.", ChannelHealth, _states, True),
)  # fmt: skip


@dataclass(frozen=True)
class LayerTable:
    """The columns that hold anything, and a row a layer: its name, and a cell a column."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]


def layer_table(survey: Survey, layers: Sequence[str] | None = None) -> LayerTable:
    """The table of a survey.

    Args:
        survey: what to show.
        layers: names of those to show, in this order; None for all, in the order of the model.
    """
    kinds = {column.kind for column in COLUMNS}
    found = {kind: by_layer(survey, kind) for kind in kinds}
    layers = list(survey.layers() if layers is None else layers)
    columns = tuple(one for one in COLUMNS if any(name in found[one.kind] for name in layers))
    rows = tuple((name_of(name), tuple(_cells(name, columns, found))) for name in layers)
    return LayerTable(columns, rows)


def _cells(
    layer: str, columns: Sequence[Column], found: dict[type[Record], dict[str, Any]]
) -> list[str]:
    return [
        column.text(found[column.kind][layer]) if layer in found[column.kind] else "-"
        for column in columns
    ]
