"""Surveys and findings made by hand: whole ones, long ones, and ones with nothing in them."""

import math
from collections.abc import Sequence
from dataclasses import replace

from renorm.findings import Figure, Finding
from renorm.measure.records import (
    MODEL,
    BatchDependence,
    BatchNoise,
    ChannelHealth,
    CompositionShift,
    CrossExampleInfluence,
    EffectiveCount,
    FixTrial,
    LayerFacts,
    LimitsAhead,
    Note,
    OutputGap,
    RankSpread,
    Record,
    Setting,
    Survey,
    TileConsistency,
    TrainEvalGap,
)

NAMES = ("stem.bn", "layer1.0.bn1", "layer1.0.bn2", "layer2.0.bn1", "layer2.0.bn2", "head.bn")
LONG = "backbone.encoder.stages.{}.blocks.{}.attention.projection.norm"


def facts(layer: str, renorm: bool = False) -> LayerFacts:
    return LayerFacts(
        layer, "BatchRenorm2d" if renorm else "BatchNorm2d", 64, 1e-5, 0.1, True, "updated", True,
        500, "r_max 1 to 3, d_max 0 to 5 over 40,000 steps" if renorm else "batch norm",
        1.5 if renorm else 1.0, 0.4 if renorm else 0.0, None, "", True, "torch.float32",
        "torch.float32", f"{layer}.conv", False, (layer,), 1,
    )  # fmt: skip


def figures(layer: str, size: float, renorm: bool = False) -> list[Record]:
    """All records of a layer; ``size`` is how bad it is, about 1."""
    quantiles = tuple(size * value for value in (-0.5, -0.15, 0.02, 0.2, 0.6))
    beyond = ((1.1, 0.8), (1.5, 0.4), (2.0, 0.2), (3.0, 0.05), (5.0, 0.0))
    bad = tuple(range(int(8 * size)))
    return [
        facts(layer, renorm),
        TrainEvalGap(layer, size, 0.8 * size, 0.6 * size, 0.7 * size, 0.2),
        BatchNoise(layer, 40, 40, 64, quantiles, quantiles, 0.3, 0.4, beyond, beyond),
        EffectiveCount(layer, 32, 128, 0.0, 16.0, 3.0, 2.0, 2.0, 4.0),
        BatchDependence(layer, 40, 80, 64, 1 + 4 * size, 0.3 * size, 0.0005, 1.0, 2000),
        ChannelHealth(layer, 64, 12.0, 1e-5, (), (), bad[:2], bad, (), bad[:1], (), ()),
        CrossExampleInfluence(layer, "layer", 8, 2.0, 0.5 * size, 0.9, 0.0),
        RankSpread(layer, 4, 0.1 * size, 0.02),
        *([LimitsAhead(layer, 1000, 1.8, 0.7)] if renorm else []),
    ]


def about_model() -> list[Record]:
    loss = (-0.74, 0.05), (0.8, 0.06), (0.06, 0.02)
    return [
        OutputGap(MODEL, 20, 0.9, 0.85, 0.3, 2.5, 0.31, 1.05, 0.25, *loss),
        CrossExampleInfluence(MODEL, "output", 8, 2.0, 0.4, 0.9, 0.0),
        CompositionShift(MODEL, 20, 4, 0.31, 0.55, 0.24, 0.03),
        TileConsistency(MODEL, 4, (16, 16), 0.2, 0.01, 0.3),
        Setting(MODEL, "training", 20000, 1, 1),
        Note(MODEL, "composition_shift", "Batches have one example."),
    ]


def trials() -> list[FixTrial]:
    seeds = (0, 1, 2)
    code = "renorm.calibrate(model, batches)"
    return [
        FixTrial(MODEL, "batch renorm", "renorm.convert(model)", 50, seeds, (0.4, 0.5, 0.35),
                 (0.6, 0.6, 0.55), 1.12, ""),
        FixTrial(MODEL, "calibrate", code, 0, seeds, (0.7, 0.8, 0.6), (0.3, 0.3, 0.3), None, ""),
        FixTrial(MODEL, "as it is", "", 50, seeds, (1.0, 1.1, 0.9), (0.0, 0.0, 0.0), 1.0, ""),
        FixTrial(MODEL, "longer EMA", "", 50, seeds, (0.9, None, 1.2), (0.1, None, -0.3), 1.0, ""),
        FixTrial(MODEL, "cross-iteration", "", 50, seeds, (), (), None, "The model is compiled."),
    ]  # fmt: skip


def surveyed(names: Sequence[str] = NAMES, *more: Record, renorm: bool = False) -> Survey:
    layers = [
        record
        for place, name in enumerate(names)
        for record in figures(name, 0.2 + 0.8 * math.sin(1 + place) ** 2, renorm)
    ]
    records = (*layers, *about_model(), *more)
    return Survey("ResNet", True, "standard", 0, 40, 80, True, False, records)


def long_names(count: int) -> list[str]:
    return [LONG.format(place // 40, place % 40) for place in range(count)]


def bare(names: Sequence[str] = NAMES[:1]) -> Survey:
    """A survey that was interrupted before anything was measured."""
    records = (*map(facts, names), Note(names[0], "survey", "No batch reached the layer."))
    return Survey("Net", False, "quick", 3, 0, 0, False, True, records)


def empty_handed(layer: str = "bn") -> Survey:
    """A survey whose every figure is None."""
    none = (None, None)
    records = (
        replace(facts(layer), momentum=None, r_max=math.inf, d_max=math.inf, limits="none"),
        TrainEvalGap(layer, None, None, None, None, None),
        BatchNoise(layer, 0, 0, 0, None, None, None, None, None, None),
        EffectiveCount(layer, 1, 1, 1.0, None, None, None, None, None),
        BatchDependence(layer, 1, 1, 0, None, None, None, None, 0),
        ChannelHealth(layer, 4, None, None, (), (), (), (), (), (), (), ()),
        CrossExampleInfluence(layer, "layer", 0, 1.0, None, None, None),
        RankSpread(layer, 2, None, None),
        OutputGap(MODEL, 1, None, None, None, None, None, None, None, none, none, none),
        CompositionShift(MODEL, 0, 0, None, None, None, None),
        TileConsistency(MODEL, 0, (), None, None, None),
        FixTrial(MODEL, "calibrate", "", 0, (0,), (None,), (None,), None, ""),
    )
    return Survey("Net", True, "quick", 0, 1, 1, True, False, records)


def stale(layers: Sequence[str] = NAMES) -> Finding:
    return Finding(
        "stale_statistics",
        "error",
        "Running statistics do not describe the data: outputs differ by 0.83 deviations",
        tuple(layers),
        tuple(
            Figure(layer, "staleness, in deviations of the output", 0.83 - 0.1 * place, 0.1)
            for place, layer in enumerate(layers[:5])
        ),
        "In eval mode the model normalizes by running statistics, and these are not those of the "
        "data it sees. The loss in eval mode is 0.80 above what it would be by statistics of the "
        "same data.",
        "0.1 deviations move about 4 % of standard normal values across a decision at 0.",
        "Estimate the statistics anew from training batches before the model is used.",
        "import renorm\n\nrenorm.calibrate(model, batches)",
        "Loss 1.05 to 0.25 on these batches: what population statistics gave in this measurement.",
        8.3,
    )


def small(layers: Sequence[str] = NAMES) -> Finding:
    return Finding(
        "small_batch",
        "warning",
        "Batches are too small: their means scatter by 0.4 sigma",
        tuple(layers[:3]),
        (Figure(layers[0], "root mean square of d", 0.41, 0.25),),
        "Each batch is normalized by statistics of few values, which differ from batch to batch.",
        "With 16 independent values the mean scatters by 1 / sqrt(16) = 0.25 sigma.",
        "Convert to batch renorm, whose limits open along the run.",
        "model = renorm.convert(model, to='batch_renorm')",
        "Ioffe (2017) trains with 4 examples as with 32.",
        1.6,
    )


def leak(layers: Sequence[str] = NAMES) -> Finding:
    return Finding(
        "batch_leak",
        "note",
        "Examples of a batch see each other: 0.5 deviations",
        tuple(layers[:1]),
        (Figure(MODEL, "influence on others", 40, 10, "%"),),
        "An example moves the outputs of others.",
        "",
        "Where examples must not know of each other, freeze the statistics.",
        "",
        "",
    )


def findings(layers: Sequence[str] = NAMES) -> tuple[Finding, ...]:
    return stale(layers), small(layers), leak(layers)
