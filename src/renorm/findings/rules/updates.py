"""Running statistics that nothing ever moved."""

from collections.abc import Iterator

from renorm.findings.finding import Figure, Finding
from renorm.findings.rules.reading import (
    CLEAR,
    clear,
    listed,
    of_layers,
    of_model,
    relative,
)
from renorm.measure.records import MODEL, LayerFacts, OutputGap, Survey, TrainEvalGap

STALE = 0.25
_COST, _WRONG = 0.1, 3.0  # of the loss by population statistics


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
        Figure(layers[0], "running against population statistics, in deviations", worst, STALE),
        Figure(layers[0], "updates", float(facts[layers[0]].updates or 0), 1.0),
    ]
    if output is not None and output.loss_staleness[0] is not None:
        figures.append(
            Figure(
                MODEL,
                "loss in eval mode less that by population statistics",
                output.loss_staleness[0],
            )
        )
    meaning = (
        "Eval mode normalizes by statistics that training does not move: the initial mean 0 and "
        "variance 1, or those of a checkpoint."
    )
    if severity == "note":
        meaning += " The loss does not suffer, so the model is probably not trained yet."
    elif severity == "warning":
        meaning += " A model that is not trained yet looks the same."
    frozen = any(facts[layer].statistics == "not updated" for layer in layers)
    advice = "Calibrate, and train in train mode with momentum above 0"
    yield Finding(
        id="never_updated",
        severity=severity,
        title=(
            f"Momentum 0: the running statistics of {listed(layers)} are never updated"
            if facts[layers[0]].updates
            else f"Running statistics of {listed(layers)} were never updated"
        ),
        layers=layers,
        evidence=tuple(figures),
        meaning=meaning,
        threshold=(
            f"No update, momentum 0 or track_running_stats=False, and {STALE:g} deviations off. A "
            f"warning if the loss by them is higher by {_COST:.0%} and {CLEAR:g} standard errors, "
            f"an error if by {_WRONG:.0%}: on digits, trained nets with fresh statistics had 28 "
            "times the loss and more, nets not trained up to 1.8 times."
        ),
        advice=f"{advice} and track_running_stats on." if frozen else f"{advice}.",
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
    cost = relative(output, output.loss_staleness)
    if not clear(output.loss_staleness, output.batches) or cost < _COST:
        return "note"
    return "error" if cost >= _WRONG else "warning"
