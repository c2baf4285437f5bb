"""Batches whose statistics are too noisy, or have one value."""

import math
from collections.abc import Iterator
from typing import NamedTuple

from renorm.findings.finding import Figure, Finding
from renorm.findings.rules.reading import (
    conversion,
    corrects,
    of_layers,
    of_model,
    shares,
    trained,
    within,
)
from renorm.measure.records import (
    MODEL,
    BatchNoise,
    EffectiveCount,
    LayerFacts,
    OutputGap,
    Survey,
)

NOISE = 0.3  # deviations of the channel
NOISE_OF_FEW = 0.1
FEW = 4  # examples
WRONG, WRONG_OF_TWO = 0.5, 0.25


class Noisy(NamedTuple):
    """A layer whose statistics are noisy because of how few values they are of.

    Args:
        layer: its name.
        noise: of the mean, in deviations of the channel: what was seen, or what independent
            examples would give if that is less.
        examples: that share statistics.
    """

    layer: str
    noise: float
    examples: float


def noisy(survey: Survey) -> tuple[Noisy, ...]:
    """The layers that normalize by the batch alone, the noisiest first."""
    counts, noises = of_layers(survey, EffectiveCount), of_layers(survey, BatchNoise)
    found = [
        _noisy(one, counts[name], noises[name], shares(one, survey))
        for name, one in trained(survey).items()
        if name in counts and name in noises and not corrects(one)
    ]
    return tuple(sorted((one for one in found if one is not None), key=lambda one: -one.noise))


def small_batch(survey: Survey) -> Iterator[Finding]:
    """Statistics of few independent values."""
    found = [one for one in noisy(survey) if one.noise >= _most(one)]
    if not found:
        return
    worst = found[0]
    layers = tuple(one.layer for one in found)
    figures = [
        Figure(
            worst.layer,
            "noise of a batch's mean, in standard deviations",
            worst.noise,
            _most(worst),
        ),
        Figure(worst.layer, "examples that share statistics", worst.examples, float(FEW)),
    ]
    seen = of_layers(survey, BatchNoise)[worst.layer]
    if seen.log_r_rms is not None:
        figures.append(
            Figure(worst.layer, "noise of the logarithm of its deviation", seen.log_r_rms)
        )
    output = of_model(survey, OutputGap)
    if output is not None and output.noise is not None:
        figures.append(
            Figure(MODEL, "how far that moves the output, in its deviations", output.noise)
        )
    bad = worst.noise >= (WRONG_OF_TWO if worst.examples <= FEW / 2 else WRONG)
    yield Finding(
        id="small_batch",
        severity="error" if bad else "warning",
        title=(
            f"Batches of {worst.examples:.0f} are too small: the mean is off by "
            f"{worst.noise:.2f} standard deviations"
        ),
        layers=layers,
        evidence=tuple(figures),
        meaning=(
            "The mean and variance of so few examples are largely chance: in training, an example "
            f"is normalized in {within(layers)} by whatever else is in its batch. That noise is in "
            "every activation and gradient. Eval mode does not have it, so the model is trained as "
            "one function and used as another."
        ),
        threshold=(
            f"{NOISE:g} deviations, which is 11 independent values; {NOISE_OF_FEW:g} for groups of "
            f"up to {FEW} examples, where ImageNet models lose: 78.3% at 32 examples, 74.2% at 4 "
            "(Ioffe 2017), 76.6% and 64.8% at 32 and 2 (published code of MABN). Nets trained "
            "on digits had up to 0.18 with batches of 32 and 0.25 with 16. An error from "
            f"{WRONG:g} on, or {WRONG_OF_TWO:g} with two examples or less."
        ),
        advice=(
            "Use larger batches, or batch renorm. With 1 to 4 examples also try "
            'renorm.convert(model, to="cross_iteration", example=inputs).'
        ),
        code=conversion(survey),
        gain=(
            "At 4 examples batch renorm kept 76.5% where batch norm had 74.2% (Ioffe 2017, "
            "ImageNet); at 2, 69.7% against 64.8% (published code of MABN, ResNet-50)."
        ),
        weight=worst.noise / _most(worst),
    )


def _noisy(
    layer: LayerFacts, count: EffectiveCount, seen: BatchNoise, processes: int
) -> Noisy | None:
    if seen.d_rms is None or not count.effective or not count.examples:
        return None
    examples = count.examples if layer.microbatch is None else layer.microbatch
    examples = min(examples, count.examples) * processes
    independent = 1 / math.sqrt(examples * count.effective)
    return Noisy(layer.layer, min(independent, seen.d_rms / math.sqrt(processes)), examples)


def _most(one: Noisy) -> float:
    return NOISE_OF_FEW if one.examples <= FEW else NOISE
