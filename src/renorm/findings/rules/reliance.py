"""Models that read in a batch what a single example does not tell."""

from collections.abc import Iterator

from renorm.findings.finding import Figure, Finding
from renorm.findings.rules.reading import (
    CLEAR,
    clear,
    conversion,
    excess,
    of_model,
    relative,
    trained,
)
from renorm.measure.records import (
    MODEL,
    CompositionShift,
    CrossExampleInfluence,
    OutputGap,
    Survey,
)

RELIES = 0.1  # of the loss
LEAK = 0.25
SHIFT = 0.1
WRONG = 0.5
_ERRORS = 2.5


def batch_leak(survey: Survey) -> Iterator[Finding]:
    """Other examples of the batch that move an example's output, and a loss that uses it."""
    found = next((o for o in survey.of(CrossExampleInfluence) if o.of == "output"), None)
    if found is None or found.influence is None or not found.own or not trained(survey):
        return
    others = max(found.influence**2 - (found.by_running or 0.0) ** 2, 0.0) ** 0.5
    share = others / found.own
    output = of_model(survey, OutputGap)
    gain = _relied(output)
    relies = gain >= RELIES
    if not relies and share < LEAK:
        return
    figures = [
        Figure(MODEL, "influence of another example, relative to its own input", share, LEAK),
        Figure(MODEL, "influence of another example, in deviations", others),
    ]
    if output is not None and output.loss_noise[0] is not None:
        figures.append(
            Figure(
                MODEL, "loss by the batch less that by population statistics", output.loss_noise[0]
            )
        )
    yield Finding(
        id="batch_leak",
        severity="warning" if relies else "note",
        title=(
            f"The loss relies on the batch: by its statistics it is {gain:.0%} lower than by fixed"
            if relies
            else f"Another example moves an output {share:.0%} as much as its own input does"
        ),
        layers=tuple(trained(survey)),
        evidence=tuple(figures),
        meaning=(
            "Through the statistics of the batch, each example enters the outputs of all others. "
            "That is harmless for most losses. One that compares examples, as in contrastive and "
            "metric learning, can be lowered by it instead of by better features, and so can any "
            "loss on batches that are put together by a pattern."
        ),
        threshold=(
            "A warning only if the loss by the batch is lower than by population and by running "
            f"statistics, by {RELIES:.0%} and {CLEAR:g} standard errors; noise alone makes it "
            "higher. A note from "
            f"{LEAK:.0%} of the influence of the own input: nets on digits had 3 to 5% with "
            "batches of 32, 6 to 7% with 16, 8 to 17% with 8, 28 to 41% with 4."
        ),
        advice=(
            "If the loss compares examples, keep views of one example in different batches of "
            "statistics (as MoCo does by shuffling), or use batch renorm."
        ),
        code=conversion(survey),
        gain=(
            "Batch renorm replaces the batch's statistics by the running ones as far as its limits "
            "allow, so outputs depend less on the batch; diagnose again to see how far."
        ),
        weight=max(gain / RELIES if relies else 0.0, share / LEAK),
    )


def composition_overfit(survey: Survey) -> Iterator[Finding]:
    """A loss in train mode that rises when the same examples are put together at random."""
    found = of_model(survey, CompositionShift)
    if found is None or found.shift is None or found.error is None or not found.loss_composed:
        return
    size = found.shift / abs(found.loss_composed)
    if size < SHIFT or excess((found.shift, found.error)) < _ERRORS:
        return
    yield Finding(
        id="composition_overfit",
        severity="error" if size >= WRONG else "warning",
        title=f"Reshuffling the batches raises the loss in train mode by {size:.0%}",
        layers=tuple(trained(survey)),
        evidence=(
            Figure(MODEL, "rise of the loss by reshuffling, relative", size, SHIFT),
            Figure(MODEL, "loss on batches as they come", found.loss_composed),
            Figure(
                MODEL,
                "the rise in standard errors",
                found.shift / max(found.error, 1e-12),
                _ERRORS,
            ),
        ),
        meaning=(
            "Batches are always put together alike, and the model has learned to take hints from "
            "their statistics. In eval mode, or for an example alone, these hints are not there."
        ),
        threshold=(
            f"{SHIFT:.0%} of the loss and {_ERRORS:g} standard errors, which chance exceeds once "
            "in 160 cases; an error from half the loss on. Ioffe 2017 (ImageNet, two images each "
            "of 16 classes) saw the accuracy of such a model fall in eval mode, and stay in train "
            "mode on batches composed alike."
        ),
        advice=(
            "Put batches together at random. Where the loss needs them like this, use batch renorm."
        ),
        code=conversion(survey),
        gain=(
            "Batch renorm on such batches reached 78.5% on ImageNet, as with independent ones "
            "(Ioffe 2017)."
        ),
        weight=size / SHIFT,
    )


def _relied(output: OutputGap | None) -> float:
    """By which part the loss is lower by the batch than by other statistics; 0 unless clearly.

    Than by population and by running ones: where these are apart, batch renorm, which goes by the
    running ones, differs from one of them alone.
    """
    if output is None:
        return 0.0
    pairs = [_negative(output.loss_noise)]
    if output.loss_gap[0] is not None:
        pairs.append(_negative(output.loss_gap))
    if not all(clear(pair, output.batches) for pair in pairs):
        return 0.0
    return min(relative(output, pair) for pair in pairs)


def _negative(pair: tuple[float | None, float | None]) -> tuple[float | None, float | None]:
    mean, error = pair
    return None if mean is None else -mean, error
