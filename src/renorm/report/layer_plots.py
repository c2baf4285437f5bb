"""Plots with a row a layer: what a survey found along the depth of a model."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeVar

from renorm.measure.records import (
    MODEL,
    BatchDependence,
    CrossExampleInfluence,
    EffectiveCount,
    LayerFacts,
    RankSpread,
    Record,
    Survey,
    TrainEvalGap,
)
from renorm.report import range_panels
from renorm.report.diagnosis_wording import number
from renorm.report.palette import series as look
from renorm.report.plots import Plot, plot
from renorm.report.rows import Series, panel

R = TypeVar("R", bound=Record)
UNIT = "standard deviations"
ORDER = "From the input of the model, at the top, to its output."


def by_layer(survey: Survey, kind: type[R]) -> dict[str, R]:
    """The first record of a kind of each layer."""
    found: dict[str, R] = {}
    for one in survey.of(kind):
        found.setdefault(one.layer, one)
    return found


def gap(survey: Survey, rows: Sequence[str], marked: Collection[str]) -> tuple[Plot, ...]:
    """Train mode against eval mode, split into staleness and noise."""
    found = by_layer(survey, TrainEvalGap)
    shown = (
        _series("gap", found, lambda one: one.gap, 0),
        _series("staleness", found, lambda one: one.staleness, 1),
        _series("noise", found, lambda one: one.noise, 2),
    )
    about = (
        "How far apart a layer's outputs are, in units of their standard deviation. Gap: train "
        "mode against eval mode. Staleness is the part that comes from running statistics that "
        "are not those of the data, and goes away with calibration; noise is the part that comes "
        f"from batches that differ from one another. {ORDER}"
    )
    drawn = panel("Train mode against eval mode", rows, shown, UNIT, marked=marked)
    key = [
        ("gap, train against eval", look(0)),
        ("staleness, running against population", look(1)),
        ("noise, batch against population", look(2)),
    ]
    return plot("gap", "Gap between train and eval mode", about, [drawn], key)


def ranges(survey: Survey, rows: Sequence[str], marked: Collection[str]) -> tuple[Plot, ...]:
    """Distributions of r and d, with the limits of each layer."""
    panels = range_panels.panels(survey, rows, marked)
    limited = any(one.r_max > 1 or one.d_max > 0 for one in survey.of(LayerFacts))
    about = (
        "How far the mean and the standard deviation of a batch lie from those of all batches: "
        "d = (batch mean - mean) / sigma, and r = batch sigma / sigma. Point: the median over "
        "batches and channels; thick line: the middle 50 %; thin line: the middle 90 %. "
    )
    about += (
        "Vertical ticks are the limits of the layer, within which batch renorm corrects: solid "
        "ones now, dotted ones at the end of the run if that is known. Limits beyond the edge of "
        "the plot are in the table of layers."
        if limited
        else "Batch norm corrects none of this, so there are no limits to be drawn."
    )
    return plot("ranges", "Batch statistics against those of all data", about, panels)


def dependence(survey: Survey, rows: Sequence[str], marked: Collection[str]) -> tuple[Plot, ...]:
    """Whether the examples of a batch depend on each other."""
    found = by_layer(survey, BatchDependence)
    told = {name: _probability(one) for name, one in found.items()}
    ratio = _series("ratio", found, lambda one: one.ratio, 3, told)
    alike = _series("correlation", found, lambda one: one.correlation, 5, told)
    about = (
        "Variance of batch means: over what it would be if examples were drawn independently, 1 at "
        "the dashed line. Above 1, the examples of a batch are alike; below, batches are more "
        "alike than chance. Correlation: of two examples of a batch. p, shown with each point and "
        "in the table, is how often reshuffled examples give as much."
    )
    panels = [
        panel(
            "Variance of batch means",
            rows,
            [ratio],
            "times the expected",
            marked=marked,
            reference=1.0,
            logarithmic=True,
        ),
        panel("Correlation in a batch", rows, [alike], "correlation", marked=marked, reference=0.0),
    ]
    return plot("dependence", "Do the examples of a batch depend on each other?", about, panels)


def count(survey: Survey, rows: Sequence[str], marked: Collection[str]) -> tuple[Plot, ...]:
    """How many values statistics are of."""
    found = by_layer(survey, EffectiveCount)
    shown = (
        _series("values", found, lambda one: float(one.least), 0),
        _series("independent values", found, _expected, 4),
        _series("observed", found, lambda one: one.observed, 3),
    )
    about = (
        "How many values of a channel a batch's mean and variance are computed from, and how many "
        "independent ones these are worth: neighbouring pixels tell little new, and neither do "
        "examples that are alike. The fewer, the noisier the statistics."
    )
    drawn = panel(
        "Values behind the statistics", rows, shown, "values", marked=marked, logarithmic=True
    )
    key = [
        ("values of a channel in the smallest batch", look(0)),
        ("independent values, by their correlation within examples", look(4)),
        ("independent values, by the observed spread of batches", look(3)),
    ]
    return plot("count", "How much data the statistics are from", about, [drawn], key)


def influence(survey: Survey, rows: Sequence[str], marked: Collection[str]) -> tuple[Plot, ...]:
    """How far the other examples of a batch move when one of them is replaced."""
    found = by_layer(survey, CrossExampleInfluence)
    rows = [*rows, MODEL] if MODEL in found and MODEL not in rows else rows
    shown = (
        _series("influence", found, lambda one: one.influence, 7),
        _series("in eval mode", found, lambda one: one.by_running, 6),
    )
    about = (
        "How far the outputs of the other examples of a batch move when one example is replaced, "
        "in standard deviations of the output. In eval mode it should be 0; what is there in train "
        "mode is information that leaks between examples through the batch's statistics."
    )
    drawn = panel("Influence on other examples", rows, shown, UNIT, marked=marked)
    key = [("in train mode", look(7)), ("in eval mode, not from normalization", look(6))]
    return plot("influence", "Do examples influence each other?", about, [drawn], key)


def ranks(survey: Survey, rows: Sequence[str], marked: Collection[str]) -> tuple[Plot, ...]:
    """How far the running statistics of processes lie apart."""
    found = by_layer(survey, RankSpread)
    shown = (
        _series("mean", found, lambda one: one.shift, 0),
        _series("log sigma", found, lambda one: one.log_ratio, 1),
    )
    about = (
        "The largest distance, over processes and channels, of a process's running statistics "
        "from those of all: of the mean in sigma, and of sigma as a logarithm of the ratio."
    )
    drawn = panel("Running statistics of processes", rows, shown, "distance", marked=marked)
    key = [("mean, in sigma", look(0)), ("log of the ratio of sigma", look(1))]
    return plot("ranks", "Do processes agree on the statistics?", about, [drawn], key)


def _series(
    name: str,
    found: Mapping[str, R],
    of: Callable[[R], float | None],
    place: int,
    told: Mapping[str, str] | None = None,
) -> Series:
    values = {layer: of(one) for layer, one in found.items()}
    return Series(name, values, look(place), told=told or {})


def _expected(one: EffectiveCount) -> float | None:
    """Independent values of a batch, if its examples are independent."""
    if one.effective is None or one.examples is None:
        return None
    return one.effective * one.examples


def _probability(one: BatchDependence) -> str:
    if one.p_more is None or one.p_less is None:
        return ""
    p, words = min((one.p_more, "as large"), (one.p_less, "as small"))
    return f"<br>p {number(p)} of {words} a ratio by chance"
