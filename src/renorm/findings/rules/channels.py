"""Channels that carry nothing: dead, lost in eps, or saturated."""

from collections.abc import Callable, Iterator

from renorm.findings.finding import Figure, Finding
from renorm.findings.rules.reading import counted, of_layers
from renorm.measure.records import ChannelHealth, LayerFacts, Survey

SHARE = 0.1  # of the channels of a layer
SATURATED = 0.9

Indices = Callable[[ChannelHealth], tuple[int, ...]]


def dead_channels(survey: Survey) -> Iterator[Finding]:
    """Channels that are constant, whose output hardly varies, or would not pass a ReLU."""
    found = _affected(survey, lambda one: (*one.constant, *one.dead, *one.negative))
    if not found:
        return
    facts = of_layers(survey, LayerFacts)
    kinds = (
        ("constant", "constant input"),
        ("dead", "output without spread"),
        ("negative", "no output above 0"),
    )
    worst, channels = found[0]
    share = len(channels) / worst.channels
    fresh = all(not facts[one.layer].updates for one, _ in found if one.layer in facts)
    yield Finding(
        id="dead_channels",
        severity="note" if fresh or share < SHARE else "warning",
        title=_title(found, "are dead"),
        layers=tuple(one.layer for one, _ in found),
        evidence=(
            Figure(worst.layer, "dead channels", 100 * share, 100 * SHARE, "%"),
            *(
                Figure(worst.layer, f"channels with {words}", float(len(getattr(worst, kind))))
                for kind, words in kinds
                if getattr(worst, kind)
            ),
        ),
        meaning=(
            "These channels give the same for any input: by a weight near 0, a constant input, or "
            "a bias so low that a ReLU behind lets nothing through. They cost time, and get hardly "
            "any gradient by which to recover. Residual blocks that start with weight 0, and "
            "channels that were pruned, are so on purpose; without a ReLU behind, outputs below 0 "
            "are no harm."
        ),
        threshold=(
            f"A warning from {SHARE:.0%} of the channels of a layer on, in a net with updates; "
            "nets trained on digits with batches of 2 to 128 had none at all. A deviation of the "
            "output below 0.001 counts as none."
        ),
        advice=(
            "Lower the learning rate, or take the norm's weight and bias out of weight decay. The "
            "code resets them to 1 and 0 in these channels."
        ),
        code=_reset(found),
        gain="The channels take part again. How much that helps is not known beforehand.",
        weight=share / SHARE,
    )


def eps_dominated(survey: Survey) -> Iterator[Finding]:
    """Channels whose variance is below eps."""
    found = _affected(survey, lambda one: one.eps_dominated)
    if not found:
        return
    facts = of_layers(survey, LayerFacts)
    worst, channels = found[0]
    share = len(channels) / worst.channels
    eps = facts[worst.layer].eps if worst.layer in facts else 1e-5
    yield Finding(
        id="eps_dominated",
        severity="warning" if share >= SHARE else "note",
        title=_title(found, "vary by less than eps"),
        layers=tuple(one.layer for one, _ in found),
        evidence=(
            Figure(
                worst.layer, "channels with a variance below eps", 100 * share, 100 * SHARE, "%"
            ),
            Figure(worst.layer, "eps", eps),
        ),
        meaning=(
            f"The deviation is divided by sqrt(variance + eps), with eps {eps:g}: such channels "
            "come out smaller than the others, and the norm no longer takes out the scale of the "
            "layer before. In half precision small variances are also inexact."
        ),
        threshold=(
            f"Variance below eps, where the output has less than 0.71 of its deviation; a warning "
            f"from {SHARE:.0%} of the channels of a layer on. Nets on digits had none."
        ),
        advice=(
            "Scale the input or the weights before; or lower eps and measure the statistics anew, "
            "in float32."
        ),
        code=_lower_eps(found, eps),
        gain="These channels come out with the deviation that the layer's weight asks for.",
        weight=share / SHARE,
    )


def saturated_channels(survey: Survey) -> Iterator[Finding]:
    """Channels whose values nearly all lie at the ends of their range."""
    found = _affected(survey, lambda one: one.saturated)
    if not found:
        return
    worst, channels = found[0]
    share = len(channels) / worst.channels
    yield Finding(
        id="saturated_channels",
        severity="warning" if share >= SATURATED else "note",
        title=_title(found, "have only values at the ends of their range"),
        layers=tuple(one.layer for one, _ in found),
        evidence=(
            Figure(
                worst.layer,
                "channels at the ends of their range",
                100 * share,
                100 * SATURATED,
                "%",
            ),
        ),
        meaning=(
            "What comes in has only two values, as from a saturated sigmoid or tanh, clipping, or "
            "a yes-or-no feature. A saturated unit passes no gradient back; a feature of two "
            "values is no harm."
        ),
        threshold=(
            "95% of the values within 0.001 of the ends of the range of their batch; a warning "
            f"from {SATURATED:.0%} of the channels of a layer on, since features of two values, "
            "and even backgrounds of images, are usual: a U-Net on such images had 55%. Nets on "
            "small digits, with sigmoids too, had none."
        ),
        advice="Put the norm before the activation, or lower the scale of what goes into it.",
        code="",
        gain="Units that are not saturated get a gradient again (Ioffe and Szegedy 2015).",
        weight=share / SATURATED,
    )


Affected = list[tuple[ChannelHealth, tuple[int, ...]]]


def _affected(survey: Survey, indices: Indices) -> Affected:
    """Layers that have such channels, the largest share first."""
    found = [(one, tuple(sorted(set(indices(one))))) for one in survey.of(ChannelHealth)]
    some = [(one, channels) for one, channels in found if channels]
    return sorted(some, key=lambda pair: -len(pair[1]) / pair[0].channels)


def _title(found: Affected, what: str) -> str:
    (worst, channels), count = found[0], len(found)
    more = f", and some of {counted(count - 1, 'other layer')}" if count > 1 else ""
    return f"{len(channels)} of {worst.channels} channels of {worst.layer} {what}{more}"


def _names(found: Affected) -> str:
    return "".join(f"    {one.layer!r}: {list(channels)},\n" for one, channels in found)


def _reset(found: Affected) -> str:
    return (
        "import torch\n\n"
        f"dead = {{\n{_names(found)}}}\n"
        "modules = dict(model.named_modules())\n"
        "with torch.no_grad():\n"
        "    for name, channels in dead.items():\n"
        '        layer = model if name == "(model)" else modules[name]\n'
        '        for entry, value in (("weight", 1.0), ("bias", 0.0)):\n'
        "            if getattr(layer, entry, None) is not None:\n"
        "                getattr(layer, entry)[channels] = value\n"
    )


def _lower_eps(found: Affected, eps: float) -> str:
    names = [one.layer for one, _ in found]
    return (
        "import renorm\n\n"
        "modules = dict(model.named_modules())\n"
        f"for name in {names!r}:\n"
        '    layer = model if name == "(model)" else modules[name]\n'
        f"    layer.eps = {eps / 1000:g}\n"
        "renorm.calibrate(model, batches)\n"
    )
