"""Channels with one value in a batch, which has no variance."""

from collections.abc import Iterator

from renorm.findings.finding import Figure, Finding
from renorm.findings.rules.reading import is_ours, of_layers, shares, trained, within
from renorm.measure.records import EffectiveCount, Survey

_CODE = """\
import renorm

total_steps = 10_000  # of your run
renorm.convert(model, limits=renorm.limits.over(total_steps), single="running")
for layer in model.modules():
    if isinstance(layer, renorm.nn.BatchRenorm):
        layer.single = "running"
"""


def single_value(survey: Survey) -> Iterator[Finding]:
    """One value a channel: one example without positions, or with one position."""
    counts = of_layers(survey, EffectiveCount)
    found = [
        (counts[name], one)
        for name, one in trained(survey).items()
        if name in counts
        and shares(one, survey) == 1
        and (counts[name].single > 0 or counts[name].least == 1)
    ]
    if not found:
        return
    found.sort(key=lambda pair: -pair[0].single)
    worst = found[0][0]
    layers = tuple(count.layer for count, _ in found)
    breaks = any(not is_ours(one) for _, one in found)
    yield Finding(
        id="single_value",
        severity="error" if breaks else "warning",
        title=f"One value per channel in {worst.single:.0%} of the batches, in {within(layers)}",
        layers=layers,
        evidence=(
            Figure(worst.layer, "batches with one value per channel", 100 * worst.single, 0.0, "%"),
            Figure(worst.layer, "least values of a channel", float(worst.least), 2.0),
        ),
        meaning=(
            "The variance of one value is 0, so what is normalized is 0 whatever the input. "
            "nn.BatchNorm raises in training for such a batch, often only at the last, smaller "
            'one of an epoch; batch renorm does too, unless it has single="running".'
        ),
        threshold="A variance needs two values. torch.nn.functional.batch_norm refuses one.",
        advice=(
            "Leave out an incomplete last batch (drop_last=True of DataLoader), or let batch "
            "renorm normalize it by the running statistics."
        ),
        code=_CODE,
        gain="Training runs through, and such batches get what eval mode would give them.",
        weight=10.0 * (1 + worst.single),
    )
