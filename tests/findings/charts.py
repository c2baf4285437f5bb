"""Records of a healthy model, to be made ill one entry at a time."""

from dataclasses import replace
from typing import Any

from renorm.findings import Finding, judge
from renorm.measure.records import (
    MODEL,
    BatchDependence,
    BatchNoise,
    ChannelHealth,
    CompositionShift,
    CrossExampleInfluence,
    EffectiveCount,
    LayerFacts,
    OutputGap,
    Record,
    Setting,
    Survey,
    TileConsistency,
    TrainEvalGap,
)

LAYERS = ("1", "4", "7")


def healthy() -> Survey:
    """Three layers trained by batches of 32, as they are measured on digits."""
    records: list[Record] = [
        OutputGap(MODEL, 15, 0.18, 0.05, 0.18, 4.0, 0.02, 0.011, 0.01,
                  (0.009, 0.002), (0.001, 0.001), (0.01, 0.002)),
        CompositionShift(MODEL, 8, 1, 0.02, 0.021, 0.001, 0.003),
        CrossExampleInfluence(MODEL, "output", 1, 32.0, 0.03, 0.7, 0.0),
        TileConsistency(MODEL, 1, (32, 32), 0.2, 0.0, 0.2),
    ]  # fmt: skip
    for i, name in enumerate(LAYERS):
        records += _of_layer(name, 0.04 + 0.03 * i)
    return Survey("Net", True, "standard", 0, 30, 960, True, False, tuple(records))


def _of_layer(name: str, noise: float) -> list[Record]:
    quantiles = (-0.1, -0.05, 0.0, 0.05, 0.1)
    return [
        LayerFacts(name, "BatchNorm2d", 16, 1e-5, 0.1, True, "updated", True, 250, "batch norm",
                   1.0, 0.0, None, "", True, "float32", "float32", None, None, (name,), 1),
        TrainEvalGap(name, 1.3 * noise, 0.03, 1.3 * noise, 0.02, 0.02),
        BatchNoise(name, 30, 30, 16, quantiles, quantiles, noise, noise, ((1.1, 0.1),),
                   ((0.1, 0.1),)),
        EffectiveCount(name, 2048, 2048, 0.0, 64.0, 1 / noise**2 / 32, 1.0, 32.0, 1 / noise**2),
        BatchDependence(name, 16, 512, 16, 1.1, 0.003, 0.3, 0.7, 499),
        ChannelHealth(name, 16, 9.0, 1e-30, (), (), (), (), (), (), (), ()),
        CrossExampleInfluence(name, "layer", 1, 32.0, 0.03, 1.2, 0.0),
    ]  # fmt: skip


def ill(kind: type[Record], layer: str | None = None, **entries: Any) -> Survey:
    """The healthy survey with other entries in the records of a kind, of a layer or all."""
    return changed(healthy(), kind, layer, **entries)


def changed(survey: Survey, kind: type[Record], layer: str | None = None, **entries: Any) -> Survey:
    """A survey with other entries in the records of a kind, of a layer or all."""
    records = tuple(
        replace(one, **entries) if isinstance(one, kind) and layer in (None, one.layer) else one
        for one in survey.records
    )
    return replace(survey, records=records)


def beside(survey: Survey, *records: Record) -> Survey:
    """A survey with further records."""
    return replace(survey, records=(*survey.records, *records))


def setting(**entries: Any) -> Setting:
    """How a model is used, training alone on whole batches unless said."""
    return replace(Setting(MODEL, "training", None, 1, 1), **entries)


def renormed(survey: Survey, **entries: Any) -> Survey:
    """With layers of batch renorm."""
    ramp = "r_max 1 -> 3 over steps 5000 to 40000, d_max 0 -> 5 over steps 5000 to 25000"
    given = {"type": "BatchRenorm2d", "limits": ramp, "momentum": 0.01, **entries}
    return changed(survey, LayerFacts, **given)


def found(survey: Survey, name: str) -> Finding | None:
    """The finding of an id, or None."""
    return next((one for one in judge(survey) if one.id == name), None)


def severity(survey: Survey, name: str) -> str | None:
    """Of the finding of an id; None where there is none."""
    one = found(survey, name)
    return None if one is None else one.severity


def stale(values: tuple[float, float, float], **output: Any) -> Survey:
    """Running statistics that are off by so much, layer by layer."""
    survey = healthy()
    for name, value in zip(LAYERS, values, strict=True):
        survey = changed(survey, TrainEvalGap, name, staleness=value, shift=value)
    given = {"staleness": 0.8, "loss_staleness": (0.5, 0.02), "loss_running": 0.51, **output}
    return changed(survey, OutputGap, **given)
