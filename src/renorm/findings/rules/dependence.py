"""Batches whose examples are not independent draws."""

import math
from collections.abc import Iterator, Sequence

from renorm.findings.finding import Figure, Finding
from renorm.findings.rules.reading import conversion, corrects, trained, within
from renorm.measure.records import BatchDependence, LayerFacts, Survey

RATIO = 2.0
_SEEN = 1.3
CHANCE = 0.005
ENOUGH = 32.0  # independent examples: statistics of so many are as usual
WORTH = 4.0  # the same, below which a batch of many is an error
_WRONG_RATIO = 4.0
_BALANCED = 0.7
_SPREAD = (
    "Examples of digits, Fashion-MNIST and CIFAR-10, put together at random in 10 to 64 batches of "
    "2 to 32, had ratios up to 2.3, which one of 960 draws passed with; batches of 4 classes "
    "had up to 1.9 to 4.1 and of sorted classes or near copies 2.6 to 16, with p 0.0025 at most."
)


def dependent_batches(survey: Survey) -> Iterator[Finding]:
    """Means of batches that spread more than chance, or less."""
    layers = trained(survey)
    found = [one for one in survey.of(BatchDependence) if one.layer in layers]
    known = [one for one in found if one.ratio is not None and one.p_more is not None]
    if not known:
        return
    more = combined([one.p_more or 1.0 for one in known])
    less = combined([one.p_less or 1.0 for one in known])
    off = sorted((one for one in known if _ratio(one) >= _SEEN), key=_ratio, reverse=True)
    if off and more <= CHANCE:
        yield _spread(survey, off, more)
    elif less <= CHANCE and min(map(_ratio, known)) <= _BALANCED:
        if any(one.statistics == "none" for one in survey.of(LayerFacts)):
            return  # such a layer makes the means of all batches alike
        yield _alike(sorted(known, key=_ratio), less)


def combined(values: Sequence[float]) -> float:
    """One p-value of several that may depend on each other, as those of layers on the same data.

    The Cauchy combination, ``1/2 - atan(mean tan(pi (1/2 - p))) / pi``: for small p about right
    whatever the dependence, where Bonferroni's could not get below the number of layers over that
    of permutations. Source: Liu and Xie 2020, "Cauchy combination test".

    >>> round(combined([0.02]), 6), round(combined([0.002, 0.5]), 4), round(combined([0.5, 0.5]), 6)
    (0.02, 0.004, 0.5)
    """
    tangents = [math.tan(math.pi * (0.5 - min(p, 0.999))) for p in values]
    return 0.5 - math.atan(sum(tangents) / len(tangents)) / math.pi


def _ratio(one: BatchDependence) -> float:
    return one.ratio or 0.0


def _spread(survey: Survey, off: Sequence[BatchDependence], p: float) -> Finding:
    worst, layers = off[0], tuple(one.layer for one in off)
    ratio, size = _ratio(worst), worst.examples / worst.batches
    worth = size / ratio
    corrected = all(corrects(one) for one in trained(survey).values())
    bad = ratio >= _WRONG_RATIO and worth <= WORTH and not corrected
    figures = [
        Figure(worst.layer, "variance of batch means, 1 for independent examples", ratio, RATIO),
        Figure(worst.layer, "p-value, of all layers together", p, CHANCE),
        Figure(worst.layer, "independent examples that a batch is worth", worth, WORTH),
    ]
    if worst.correlation is not None:
        figures.append(Figure(worst.layer, "correlation of examples in a batch", worst.correlation))
    return Finding(
        id="dependent_batches",
        severity="error" if bad else "warning" if ratio >= RATIO and worth < ENOUGH else "note",
        title=f"Examples in a batch are alike: {size:.0f} are worth {worth:.1f} independent ones",
        layers=layers,
        evidence=tuple(figures),
        meaning=(
            f"The means of batches in {within(layers)} vary more than those of examples drawn at "
            f"random, by {ratio:.1f} times in the variance, as when a batch has few classes, one "
            "video or one place. Train mode subtracts what the examples of a batch have in common, "
            "which may be just what tells the classes apart; eval mode does not subtract it, so "
            "the model meets other inputs than in training."
        ),
        threshold=(
            f"{RATIO:g} times the variance, where a batch is worth less than {ENOUGH:g} "
            f"independent examples, {_SEEN:g} for a note, with p up to {CHANCE:g} for all layers "
            f"together (Cauchy combination of {worst.permutations} permutations each). The ratio "
            "is 1 + (N - 1) rho for a correlation rho in batches of N, so in large ones it is high "
            f"before there is harm: batch norm is used with {ENOUGH:g} examples as a rule. "
            f"{_SPREAD} An error where a batch is worth {WORTH:g} examples or less, at "
            f"{_WRONG_RATIO:g} times or more, and no batch renorm corrects for it."
        ),
        advice=(
            "Shuffle: DataLoader(..., shuffle=True), a buffer for streams. Else use batch renorm; "
            "backward='moving' if several such batches make a gradient."
        ),
        code="" if corrected else conversion(survey),
        gain=(
            "On ImageNet, in batches of 16 classes with two images each, batch renorm reached "
            "78.5%, as with independent batches (Ioffe 2017). On CIFAR-10, where 8 examples of two "
            "classes shared statistics, batch norm ended at 20.7%, batch renorm at 59.1% and with "
            'backward="moving" at 73.5%, as on random batches '
            "(renorm reproduce moving-backward --scale laptop)."
        ),
        weight=ratio / RATIO,
    )


def _alike(known: Sequence[BatchDependence], p: float) -> Finding:
    worst = known[0]
    return Finding(
        id="dependent_batches",
        severity="note",
        title=f"Batches are more alike than by chance: {_ratio(worst):.2f} times the variance",
        layers=tuple(one.layer for one in known if _ratio(one) <= _BALANCED),
        evidence=(
            Figure(
                worst.layer,
                "variance of batch means, 1 for independent examples",
                _ratio(worst),
                _BALANCED,
            ),
            Figure(worst.layer, "p-value, of all layers together", p, CHANCE),
        ),
        meaning=(
            "A sampler balances the batches, by class for instance. Statistics are less noisy for "
            "it, but a model may come to rely on the balance, which single examples have not."
        ),
        threshold=(
            f"{_BALANCED:g} times the variance of independent draws, with p up to {CHANCE:g}. "
            f"{_SPREAD} Those of 8 of 10 classes had 0.6 to 0.8."
        ),
        advice="Compare the accuracy in eval mode with that in train mode before you rely on it.",
        code="",
        gain="Nothing, unless the model relies on the composition of batches.",
        weight=_BALANCED / max(_ratio(worst), 1e-3),
    )
