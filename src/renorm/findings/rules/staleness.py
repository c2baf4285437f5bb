"""Running statistics that are not those of the data: stale, or of another domain."""

import math
from collections.abc import Iterator
from typing import NamedTuple

from renorm.findings.finding import Figure, Finding
from renorm.findings.rules.reading import (
    calibration,
    clear,
    of_layers,
    of_model,
    relative,
)
from renorm.findings.rules.updates import never_updated_layers
from renorm.measure.records import MODEL, LayerFacts, OutputGap, Survey, TrainEvalGap

LAYER = 0.25  # of the deviation of a layer's output
OUTPUT = 0.25  # of that of the model's
WRONG = 0.5
COST = 0.25  # of the loss by population statistics
_BEYOND_NOISE = 2.0
_NOT_SETTLED = 0.05
_HARMLESS = 0.1  # of the loss: a net that is hardly trained yet
# staleness of the first layer over the largest of the others: weights that moved gave up to 0.6 on
# digits and 0.8 on photographs, other domains 0.55 and more
_DEPTH, _DOMAIN, _OF_HELD = 0.4, 0.55, 0.8


class _Stale(NamedTuple):
    """The layers that are off, the worst first, and how."""

    layers: tuple[str, ...]
    worst: TrainEvalGap
    first: float  # staleness of the first layer of the model over the largest of the others
    output: OutputGap | None
    facts: dict[str, LayerFacts]

    @property
    def held(self) -> bool:
        """Whether momentum is 0, so that nothing moves the statistics."""
        return self.facts[self.worst.layer].momentum == 0

    @property
    def frozen(self) -> bool:
        """Whether training goes by the statistics as they are."""
        return all(self.facts[name].statistics == "frozen" for name in self.layers)

    @property
    def left(self) -> float:
        """Fraction of a running statistic that is from before the first update, at most 1."""
        one = self.facts[self.worst.layer]
        if not one.updates or not one.momentum or one.statistics == "frozen":
            return 0.0
        return (1 - one.momentum) ** one.updates


def stale_statistics(survey: Survey) -> Iterator[Finding]:
    """Running statistics that lag behind the weights, or are of other data."""
    found = _stale(survey)
    if found is None:
        return
    if found.left > _NOT_SETTLED or found.first < (_OF_HELD if found.held else _DEPTH):
        yield _finding(found, "stale_statistics", 1.0)
        return
    likely_domain = found.first >= _DOMAIN
    yield _finding(found, "stale_statistics", 0.5 if likely_domain else 1.0)
    yield _finding(found, "shifted_domain", 1.0 if likely_domain else 0.5)


def expected(gap: TrainEvalGap, layer: LayerFacts) -> float:
    """Staleness that the noise of batches alone leaves in a moving average of them.

    An average with update rate a of independent values has a / (2 - a) of their variance.
    """
    rate = layer.momentum or 0.0
    return (gap.noise or 0.0) * math.sqrt(rate / (2 - rate))


def _stale(survey: Survey) -> _Stale | None:
    facts = of_layers(survey, LayerFacts)
    never = {name for name in never_updated_layers(survey) if not facts[name].updates}
    output = of_model(survey, OutputGap)
    moved = output is not None and (output.staleness or 0) >= OUTPUT
    gaps = {
        gap.layer: gap
        for gap in survey.of(TrainEvalGap)
        if gap.staleness is not None and gap.layer in facts and gap.layer not in never
    }
    off = [
        gap
        for gap in gaps.values()
        if _value(gap) >= (LAYER / 2 if moved else LAYER)
        and _value(gap) >= _BEYOND_NOISE * expected(gap, facts[gap.layer])
    ]
    if not off:
        return None
    off.sort(key=_value, reverse=True)
    first, *others = map(_value, gaps.values())
    share = first / max(others) if others and max(others) > 0 else _DOMAIN
    return _Stale(tuple(gap.layer for gap in off), off[0], share, output, facts)


def _value(gap: TrainEvalGap) -> float:
    return gap.staleness or 0.0


def _finding(found: _Stale, name: str, share: float) -> Finding:
    worst, output, layers = found.worst, found.output, found.layers
    domain = name == "shifted_domain"
    weight = _value(worst) / LAYER
    if output is not None and output.staleness is not None:
        weight = max(weight, output.staleness / OUTPUT)
    severity = _severity(found)
    if share < 1 and severity == "error":
        severity = "warning"
    verb = "may be" if _uncertain(found) else "are"
    what = "of other data" if domain else "out of date"
    return Finding(
        id=name,
        severity=severity,
        title=f"Running statistics {verb} {what}: off by {_value(worst):.2f} standard deviations",
        layers=layers,
        evidence=_evidence(found),
        meaning=_meaning(found, domain),
        threshold=(
            f"{LAYER:g} deviations of a layer's output, and {_BEYOND_NOISE:g} times what the noise "
            "of batches leaves in a moving average, sqrt(a / (2 - a)) of it for the update rate a. "
            "Nets trained on digits with momentum 0.1 and batches of 4 to 128 had 0.03 to 0.17, "
            "with statistics held for 60 steps of training up to 0.37, on data of another "
            f"brightness or contrast 0.6 to 1.1. An error from {WRONG:g} deviations of the model's "
            f"output and {COST:.0%} of the loss on. Of frozen layers, which training goes by too, "
            f"a note unless they clearly cost {_HARMLESS:.0%} of the loss."
        ),
        advice=_advice(found, domain),
        code=calibration(found.facts[layer] for layer in layers),
        gain=_gain(output),
        weight=share * weight,
    )


def _severity(found: _Stale) -> str:
    gap = found.output
    wrong = 0.0 if gap is None or gap.staleness is None else gap.staleness
    if gap is None or gap.loss_staleness[0] is None:
        return "error" if wrong >= 2 * WRONG else "warning"
    cost = relative(gap, gap.loss_staleness)
    if clear(gap.loss_staleness, gap.batches) and cost > 0:
        costs = not found.frozen or cost >= _HARMLESS
        return "error" if wrong >= WRONG and cost >= COST else "warning" if costs else "note"
    if found.frozen:
        return "note"
    return "note" if found.left > _NOT_SETTLED and cost < _HARMLESS else "warning"


def _evidence(found: _Stale) -> tuple[Figure, ...]:
    worst, output = found.worst, found.output
    figures = [
        Figure(
            worst.layer,
            "running against population statistics, in deviations",
            _value(worst),
            LAYER,
        )
    ]
    if output is not None and output.staleness is not None:
        figures.append(
            Figure(
                MODEL, "how far that moves the output, in its deviations", output.staleness, OUTPUT
            )
        )
    if output is not None and None not in (output.loss_running, output.loss_population):
        assert output.loss_running is not None
        assert output.loss_population is not None
        figures.append(Figure(MODEL, "loss by running statistics", output.loss_running))
        figures.append(Figure(MODEL, "loss by population statistics", output.loss_population))
    for what, value in (
        ("of that, by the mean", worst.shift),
        ("logarithm of the ratio of deviations", worst.log_ratio),
    ):
        if value is not None:
            figures.append(Figure(worst.layer, what, value))
    figures.append(
        Figure(
            MODEL,
            "first layer's distance, relative to the worst of the others",
            found.first,
            _DOMAIN,
        )
    )
    return tuple(figures)


def _meaning(found: _Stale, domain: bool) -> str:
    if found.frozen:
        return (
            "These layers are frozen: in training as in eval mode they normalize by running "
            "statistics that are not those of the batches given. What is trained with them knows "
            "them, so there is no gap; but if they come from other data or weights by mistake, the "
            "layers get inputs of another shift and scale than these weights were trained for."
        )
    start = (
        "In eval mode these layers normalize by running statistics that are not those of all "
        "batches you gave (the population), so the layers behind them get inputs that are shifted "
        "and scaled against training."
    )
    if found.left > _NOT_SETTLED:
        return (
            f"{start} {found.left:.0%} of them still is what they were before the first update: "
            "there were too few updates for this momentum."
        )
    if found.held and not domain:
        return f"{start} Momentum is 0, so they stay as they are while the weights move."
    if domain:
        cause = (
            "The first layer, whose input depends on the weights least, is off about as far as "
            "any: the data differ from those of training."
        )
    else:
        cause = (
            "The difference grows with depth, as it does where the weights moved after the "
            "statistics were taken, or where the moving average is too slow."
        )
    if _uncertain(found):
        cause += " The figures do not tell moved weights from other data for certain."
    return f"{start} {cause}"


def _uncertain(found: _Stale) -> bool:
    return found.first >= _DEPTH and found.left <= _NOT_SETTLED and not found.held


def _advice(found: _Stale, domain: bool) -> str:
    if found.left > _NOT_SETTLED:
        return "Calibrate on some hundred batches, and raise momentum for short runs."
    if domain:
        return (
            "If the model is to work on these data, calibrate on them; if not, diagnose with "
            "batches of the data of training."
        )
    if found.held:
        return "Calibrate, and give momentum a value above 0, such as 0.1."
    return "Calibrate: measure the statistics anew, with these weights, on some hundred batches."


def _gain(output: OutputGap | None) -> str:
    if output is None or output.loss_staleness[0] is None:
        return (
            "The gap between running and population statistics closes; 1,000 to 10,000 examples "
            "are enough (Wu and Johnson 2021, arXiv 2105.07576)."
        )
    return (
        f"The loss in eval mode goes from {output.loss_running:.3g} to "
        f"{output.loss_population:.3g}, as measured here with population statistics."
    )
