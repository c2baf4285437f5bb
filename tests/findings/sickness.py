"""One survey for each finding, each with one cause."""

from charts import LAYERS, beside, changed, healthy, ill, renormed, setting, stale

from renorm.measure.records import (
    MODEL,
    BatchDependence,
    BatchNoise,
    ChannelHealth,
    CompositionShift,
    Converted,
    CrossExampleInfluence,
    EffectiveCount,
    LayerFacts,
    LimitsAhead,
    OutputGap,
    RankSpread,
    Survey,
    TileConsistency,
    TrainEvalGap,
)


def of_two() -> Survey:
    survey = ill(EffectiveCount, examples=2.0, effective=6.0)
    return changed(survey, BatchNoise, d_rms=0.3, log_r_rms=0.4)


def never_updated() -> Survey:
    return changed(stale((0.4, 0.5, 0.6)), LayerFacts, updates=0)


def momentum(rate: float = 0.99) -> Survey:
    survey = changed(stale((0.1, 0.1, 0.3), staleness=0.4), LayerFacts, momentum=rate)
    return changed(survey, TrainEvalGap, noise=0.4)


def sorted_labels() -> Survey:
    survey = ill(BatchDependence, ratio=11.0, correlation=0.3, p_more=0.002, p_less=1.0)
    survey = changed(survey, BatchNoise, d_rms=0.5)
    return changed(survey, TrainEvalGap, staleness=0.5, noise=0.6)


def without_statistics() -> Survey:
    survey = ill(LayerFacts, "1", statistics="none", updates=None)
    survey = changed(survey, TrainEvalGap, "1", gap=None, staleness=None)
    return changed(survey, TileConsistency, interior=0.4)


def exported() -> Survey:
    return beside(healthy(), setting(purpose="export"))


def relying() -> Survey:
    return ill(OutputGap, loss_noise=(-0.004, 0.001), loss_gap=(-0.005, 0.001))


def open_early(survey: Survey) -> Survey:
    survey = renormed(survey, r_max=3.0, d_max=5.0, updates=50_000)
    return beside(survey, setting(purpose="finetuning"))


SICK: dict[str, tuple[str, Survey]] = {
    "stale_statistics": ("error", stale((0.1, 0.4, 0.6))),
    "shifted_domain": ("error", stale((0.8, 0.15, 0.1))),
    "small_batch": ("error", of_two()),
    "single_value": ("error", ill(EffectiveCount, "7", least=1, single=0.05)),
    "dependent_batches": ("error", sorted_labels()),
    "batch_leak": ("warning", relying()),
    "composition_overfit": ("warning", ill(CompositionShift, shift=0.008, error=0.002)),
    "dead_channels": ("warning", ill(ChannelHealth, "4", dead=(1, 2, 3), constant=(5,))),
    "eps_dominated": ("warning", ill(ChannelHealth, "4", eps_dominated=(0, 2))),
    "saturated_channels": ("warning", ill(ChannelHealth, "4", saturated=tuple(range(15)))),
    "non_finite": ("error", ill(ChannelHealth, "4", bad_statistics=(3,))),
    "momentum_convention": ("error", momentum()),
    "never_updated": ("error", never_updated()),
    "mixed_modes": ("warning", ill(LayerFacts, "4", training=False)),
    "redundant_bias": ("note", ill(LayerFacts, "4", source="3", source_bias=True)),
    "norm_lost": (
        "error",
        beside(healthy(), Converted("4", "BatchRenorm2d", "SyncBatchNorm", True, False)),
    ),
    "ranks_differ": ("warning", beside(healthy(), RankSpread("4", 2, 0.5, 0.1))),
    "accumulation": ("error", beside(of_two(), setting(accumulation=8))),
    "train_mode_export": ("error", exported()),
    "limits_open_early": ("warning", open_early(healthy())),
    "limits_never_open": (
        "warning",
        beside(renormed(healthy()), *(LimitsAhead(name, 2_000, 1.0, 0.0) for name in LAYERS)),
    ),
    "tile_artifacts": ("error", without_statistics()),
}  # fmt: skip

# other ways to the same findings, whose advice or code differs
MORE: dict[str, Survey] = {
    "accumulation of batch renorm": beside(renormed(healthy()), setting(accumulation=4)),
    "balanced batches": ill(BatchDependence, ratio=0.5, p_more=1.0, p_less=0.002),
    "bias without statistics": ill(
        LayerFacts, source="3", source_bias=True, statistics="none", updates=None
    ),
    "dead by birth": ill(ChannelHealth, "1", negative=tuple(range(16))),
    "fine-tuned by batches of two": beside(of_two(), setting(purpose="finetuning", steps=500)),
    "frozen and stale": changed(stale((0.1, 0.4, 0.6)), LayerFacts, statistics="frozen"),
    "in eval mode but one": changed(
        ill(LayerFacts, "4", training=False), LayerFacts, "7", training=False, learns=False
    ),
    "input not finite": ill(ChannelHealth, "1", not_finite=(0, 1)),
    "lost to the identity": beside(healthy(), Converted("4", "BatchNorm2d", "", False, False)),
    "lost to batch norm": beside(
        healthy(), Converted("4", "BatchRenorm2d", "BatchNorm2d", True, False)
    ),
    "momentum of 0": changed(stale((0.2, 0.5, 0.6)), LayerFacts, momentum=0.0),
    "near overflow": ill(ChannelHealth, "7", headroom=0.5),
    "neither of both for certain": stale((0.5, 0.6, 0.7)),
    "of one example": ill(CrossExampleInfluence, MODEL, influence=0.5),
    "renorm, frozen and stale": renormed(stale((0.1, 0.4, 0.6)), statistics="frozen"),
    "statistics that do not settle": changed(
        stale((0.5, 0.6, 0.6)), LayerFacts, momentum=0.001, updates=200
    ),
    "tiles by something else": ill(TileConsistency, interior=0.3),
}
