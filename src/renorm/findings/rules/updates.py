"""Running statistics that nothing ever moved."""

from collections.abc import Iterator

from renorm.findings.finding import Figure, Finding
from renorm.findings.rules.reading import (
    CLEAR,
    excess,
    listed,
    of_layers,
    of_model,
    relative,
)
from renorm.measure.records import MODEL, LayerFacts, OutputGap, Survey, TrainEvalGap

STALE = 0.25
_COST = 0.1


def never_updated_layers(survey: Survey) -> tuple[str, ...]:
    """Layers whose statistics are off and were never updated, the worst first."""
    gaps = of_layers(survey, TrainEvalGap)
    found = {
        one.layer: gaps[one.layer].staleness or 0.0
        for one in survey.of(LayerFacts)
        if one.layer in gaps and _never(one)
    }
    off = [layer for layer, value in found.items() if value >= STALE]
    return tuple(sorted(off, key=lambda layer: -found[layer]))


def never_updated(survey: Survey) -> Iterator[Finding]:
    """Statistics with no update, or an update rate of 0, that are not those of the data."""
    layers = never_updated_layers(survey)
    if not layers:
        return
    facts, gaps = of_layers(survey, LayerFacts), of_layers(survey, TrainEvalGap)
    output = of_model(survey, OutputGap)
    worst = gaps[layers[0]].staleness or 0.0
    severity = _severity(output)
    figures = [
        Figure(layers[0], "running against population statistics", worst, STALE),
        Figure(layers[0], "updates", float(facts[layers[0]].updates or 0), 1.0),
    ]
    if output is not None and output.loss_staleness[0] is not None:
        figures.append(Figure(MODEL, "loss in eval mode less that by population statistics",
                              output.loss_staleness[0]))  # fmt: skip
    meaning = (
        "Eval mode normalizes by statistics that no training step has moved: they are the initial "
        "mean 0 and variance 1, or were loaded with a counter of 0."
    )
    if severity == "note":
        meaning += " The loss does not suffer, so the model is probably not trained yet."
    elif severity == "warning":
        meaning += " Without a loss, a model that is not trained yet looks the same."
    frozen = any(facts[layer].statistics == "not updated" for layer in layers)
    advice = "Measure the statistics; and train in train mode, with momentum above 0"
    yield Finding(
        id="never_updated",
        severity=severity,
        title=f"Running statistics of {listed(layers)} were never updated",
        layers=layers,
        evidence=tuple(figures),
        meaning=meaning,
        threshold=(
            f"No update, momentum 0 or track_running_stats=False, and {STALE:g} deviations off. An "
            f"error only if the loss by them is clearly higher, by {_COST:.0%} and {CLEAR:g} "
            "standard errors: on digits, trained nets with fresh statistics had 100 times the "
            "loss, nets not trained the same loss."
        ),
        advice=f"{advice}, with track_running_stats on." if frozen else f"{advice}.",
        code="import renorm\n\nrenorm.calibrate(model, batches)\n",
        gain=(
            "Eval mode then agrees with train mode up to the noise of batches (Ioffe and Szegedy "
            "2015, Algorithm 2)."
        ),
        weight=worst / STALE,
    )


def _never(layer: LayerFacts) -> bool:
    if layer.statistics == "updated":
        return layer.updates == 0 or layer.momentum == 0
    return layer.statistics == "not updated"


def _severity(output: OutputGap | None) -> str:
    if output is None or output.loss_staleness[0] is None:
        return "warning"
    clear = excess(output.loss_staleness) >= CLEAR
    return "error" if clear and relative(output, output.loss_staleness) >= _COST else "note"
