"""Momentum in the other convention: what is kept, where torch has what is taken."""

from collections.abc import Iterator

from renorm.findings.finding import Figure, Finding
from renorm.findings.rules.reading import clear, of_layers, of_model, trained, within
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
        figures.append(
            Figure(layer, "noise of one batch left in the statistics, in deviations", value)
        )
    costs = False
    if output is not None and output.staleness is not None:
        figures.append(
            Figure(
                MODEL, "how far that moves the output, in its deviations", output.staleness, OUTPUT
            )
        )
        costs = output.staleness >= OUTPUT and clear(output.loss_staleness, output.batches)
    yield Finding(
        id="momentum_convention",
        severity="error" if costs else "warning",
        title=f"Momentum {rate:g} replaces {rate:.0%} of the running statistics at each batch",
        layers=layers,
        evidence=tuple(figures),
        meaning=(
            "In PyTorch momentum is the weight of the new batch, in Keras and TensorFlow that of "
            f"the old average. With {rate:g} here, the running statistics of {within(layers)} are "
            "little more than those of the last batch: eval mode has the noise of one batch, and "
            "is another after each step."
        ),
        threshold=(
            f"From {MOST:g} on, the last batch weighs more than all before it. Defaults are 0.1 "
            "(torch) and 0.01 (Ioffe 2017) as a rate, 0.9 to 0.999 as what is kept, so nothing "
            "usual is near the threshold. An error where the loss in eval mode clearly suffers."
        ),
        advice=(
            f"Set momentum to {_other(rate):g} where the model is built; the code sets one minus "
            "the value here, and calibrates."
        ),
        code=_CODE,
        gain=(
            f"The variance that chance gives the running statistics is {_ratio(rate):.0f} times "
            "smaller: it is a / (2 - a) of that of a batch, with momentum a."
        ),
        weight=max(rate / MOST, max(noise)[0] / OUTPUT if noise else 0.0),
    )


def _other(rate: float) -> float:
    return max(round(1 - rate, 6), 0.01)


def _ratio(rate: float) -> float:
    new = _other(rate)
    return (rate / (2 - rate)) / (new / (2 - new))
