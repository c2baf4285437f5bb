"""What several rules read out of a survey, and how they word it."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from renorm.measure.records import MODEL, LayerFacts, OutputGap, Record, Setting, Survey

R = TypeVar("R", bound=Record)

CLEAR = 3.0  # standard errors, beyond which chance alone is no explanation (p 0.00135)
# the same p by Student's t, for so many batches or more
_CLEAR_OF_FEW = ((30, 3.3), (15, 3.6), (10, 4.1), (8, 4.5), (6, 5.5), (5, 6.6), (4, 9.2), (3, 19.2))
_CLEAR_OF_TWO = 236.0
_NAMED = 3
_TOTAL = 10_000
_SHORT = 6_000  # below it, statistics do not settle before limits.over opens


def of_layers(survey: Survey, kind: type[R]) -> dict[str, R]:
    """The records of a kind by layer, in the order of the model; the last of several."""
    return {one.layer: one for one in survey.of(kind)}


def of_model(survey: Survey, kind: type[R]) -> R | None:
    """The record of a kind about the whole model."""
    return next((one for one in survey.of(kind) if one.layer == MODEL), None)


def trained(survey: Survey) -> dict[str, LayerFacts]:
    """The layers that normalize by the batch in training.

    Those in eval mode are left out if others are not: they stay so by somebody's will.
    """
    found = [one for one in survey.of(LayerFacts) if one.statistics != "frozen"]
    somewhere = any(one.training for one in found)
    return {one.layer: one for one in found if one.training or not somewhere}


def is_ours(layer: LayerFacts) -> bool:
    """Whether it is a layer of this package; by its schedule, which batch norm has not."""
    return layer.limits != "batch norm"


def corrects(layer: LayerFacts) -> bool:
    """Whether it has, or will have, more to go by than its batch: batch renorm, or a window."""
    if layer.statistics == "none" and not layer.type.startswith("CrossIteration"):
        return False
    return is_ours(layer) and layer.limits != "r_max 1, d_max 0"


def shares(layer: LayerFacts, survey: Survey) -> int:
    """Processes whose batches are one to the layer."""
    setting = of_model(survey, Setting)
    return setting.processes if setting is not None and layer.sync == "batch" else 1


def excess(pair: tuple[float | None, float | None]) -> float:
    """A mean in standard errors; 0 if either is not known."""
    mean, error = pair
    if mean is None or error is None:
        return 0.0
    return mean / max(error, 1e-12 * abs(mean) + 1e-300)


def clear(pair: tuple[float | None, float | None], batches: int) -> bool:
    """Whether a mean over batches is above 0 by more than chance explains.

    >>> clear((0.4, 0.1), 30), clear((0.4, 0.1), 4), clear((0.4, None), 1)
    (True, False, False)
    """
    needed = next((most for n, most in _CLEAR_OF_FEW if batches >= n), _CLEAR_OF_TWO)
    return excess(pair) >= needed


def relative(gap: OutputGap | None, pair: tuple[float | None, float | None]) -> float:
    """The mean of a difference of losses, as a fraction of the loss by population statistics."""
    if gap is None or pair[0] is None or not gap.loss_population:
        return 0.0
    return pair[0] / abs(gap.loss_population)


def listed(layers: Sequence[str]) -> str:
    """Names of layers, the first few of many.

    >>> listed(["a"]), listed(["a", "b", "c", "d", "e"])
    ('a', 'a, b, c and 2 more')
    """
    more = len(layers) - _NAMED
    if more <= 1:
        return ", ".join(layers)
    return f"{', '.join(layers[:_NAMED])} and {more} more"


def within(layers: Sequence[str]) -> str:
    """The layers in a sentence, said to be layers: a name may be a number.

    >>> within(["8"]), within(["a", "b"])
    ('layer 8', 'layers a, b')
    """
    return f"{'layer' if len(layers) == 1 else 'layers'} {listed(layers)}"


def counted(n: int, word: str) -> str:
    """A number with its noun.

    >>> counted(1, "layer"), counted(3, "layer")
    ('1 layer', '3 layers')
    """
    return f"{n} {word}" if n == 1 else f"{n} {word}s"


def steps_of(survey: Survey) -> int | None:
    """Updates that the run still does, as far as its user said."""
    setting = of_model(survey, Setting)
    return None if setting is None or not setting.steps else setting.steps


def conversion(survey: Survey) -> str:
    """Code that makes batch renorm of a model's batch norm, with limits for what it is for.

    Layers that are batch renorm already get the limits alone.
    """
    setting, momentum = of_model(survey, Setting), ""
    if setting is not None and setting.purpose == "finetuning":
        limits = "renorm.limits.fixed(1.5, 0.5)  # the statistics have settled before"
        given = ""
    else:
        steps = steps_of(survey)
        given = f"total_steps = {steps or _TOTAL:_}" + ("" if steps else "  # of your run") + "\n"
        limits = "renorm.limits.over(total_steps)"
        if steps is not None and steps < _SHORT:
            momentum = ", momentum=0.1"
    if any(is_ours(one) for one in survey.of(LayerFacts)):
        body = (
            f"limits = {limits}\n"
            f"renorm.convert(model, limits=limits{momentum})\n"
            "for layer in model.modules():\n"
            "    if isinstance(layer, renorm.nn.BatchRenorm):\n"
            "        layer.limits = limits\n"
            "        layer.restart_limits()"
        )
    else:
        body = f"limits = {limits}\nrenorm.convert(model, limits=limits{momentum})"
    return f"import renorm\n\n{given}{body}\n"


def calibration(layers: Iterable[LayerFacts]) -> str:
    """Code that measures the running statistics anew; empty if no layer could be given others."""
    kinds = list(layers)
    free = [one for one in kinds if one.statistics != "frozen"]
    if free:
        return "import renorm\n\nrenorm.calibrate(model, batches)\n"
    if any(is_ours(one) for one in kinds):
        return (
            "import renorm\n\n"
            "renorm.unfreeze(model)\n"
            "renorm.calibrate(model, batches)\n"
            "renorm.freeze(model)\n"
        )
    return ""
