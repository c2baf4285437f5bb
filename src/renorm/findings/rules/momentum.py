"""Momentum in the other convention: what is kept, where torch has what is taken."""

from collections.abc import Iterator

from renorm.findings.finding import Figure, Finding
from renorm.findings.rules.reading import CLEAR, excess, listed, of_layers, of_model, trained
from renorm.findings.rules.staleness import OUTPUT, expected
from renorm.measure.records import MODEL, OutputGap, Survey, TrainEvalGap

MOST = 0.5

_CODE = """\
import renorm

for layer in model.modules():
    if (getattr(layer, "momentum", None) or 0) >= 0.5:
        layer.momentum = max(round(1 - layer.momentum, 6), 0.01)
renorm.calibrate(model, batches)
"""


def momentum_convention(survey: Survey) -> Iterator[Finding]:
    """Update rates of 0.9, 0.99 and the like, with which the last batch is all there is."""
    found = [
        one
        for one in trained(survey).values()
        if one.statistics == "updated" and one.momentum is not None and one.momentum >= MOST
    ]
    if not found:
        return
    found.sort(key=lambda one: -(one.momentum or 0))
    layers, rate = tuple(one.layer for one in found), found[0].momentum or 0.0
    gaps, output = of_layers(survey, TrainEvalGap), of_model(survey, OutputGap)
    noise = [(expected(gaps[one.layer], one), one.layer) for one in found if one.layer in gaps]
    figures = [Figure(layers[0], "momentum", rate, MOST)]
    if noise:
        value, layer = max(noise)
        figures.append(Figure(layer, "noise of batches that is left in the statistics", value))
    costs = False
    if output is not None and output.staleness is not None:
        figures.append(
            Figure(MODEL, "running against population, of the output", output.staleness, OUTPUT)
        )
        costs = output.staleness >= OUTPUT and excess(output.loss_staleness) >= CLEAR
    yield Finding(
        id="momentum_convention",
        severity="error" if costs else "warning",
        title=f"Momentum {rate:g} is a rate of change in torch: each batch replaces the statistics",
        layers=layers,
        evidence=tuple(figures),
        meaning=(
            f"torch adds momentum times the new value, Keras and TensorFlow keep momentum times "
            f"the old one. With {rate:g}, the running statistics of {listed(layers)} are little "
            "more than those of the last batch, so eval mode has the noise of one batch, another "
            "one after each step."
        ),
        threshold=(
            f"From {MOST:g} on, the last batch weighs more than all before it. Defaults are 0.1 "
            "(torch) and 0.01 (Ioffe 2017) as a rate, 0.9 to 0.999 as what is kept, so nothing "
            "usual is near the threshold. An error where the loss in eval mode clearly suffers."
        ),
        advice="Give one minus the value, and measure the statistics once.",
        code=_CODE,
        gain=(
            f"The variance of the running statistics falls by {_ratio(rate):.0f} times, by "
            "a / (2 - a) of the variance of a batch for the rate a."
        ),
        weight=max(rate / MOST, max(noise)[0] / OUTPUT if noise else 0.0),
    )


def _ratio(rate: float) -> float:
    new = max(1 - rate, 0.01)
    return (rate / (2 - rate)) / (new / (2 - new))
