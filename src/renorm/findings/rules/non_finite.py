"""NaN and infinity, in statistics, parameters and inputs."""

from collections.abc import Iterator

from renorm.findings.finding import Figure, Finding
from renorm.findings.rules.reading import listed
from renorm.measure.records import ChannelHealth, Survey

HEADROOM = 0.25
_FIRST = 1e3  # weight: where there is NaN, no other figure means much

_CODE = """\
import torch

import renorm

for name, layer in model.named_modules():
    if isinstance(getattr(layer, "running_mean", None), torch.Tensor):
        found = [layer.running_mean, layer.running_var, *layer.parameters(recurse=False)]
        if not all(bool(t.isfinite().all()) for t in found):
            print(name)
            layer.reset_running_stats()
renorm.calibrate(model, batches)
"""


def non_finite(survey: Survey) -> Iterator[Finding]:
    """Values that are not finite, and inputs about to leave the range of their dtype."""
    kinds = (
        ("bad_statistics", "running statistics that are not finite, or a variance below 0"),
        ("bad_parameters", "weight or bias not finite"),
        ("not_finite", "input with NaN or infinity"),
    )
    found = [
        one for one in survey.of(ChannelHealth) if any(getattr(one, kind) for kind, _ in kinds)
    ]
    if found:
        first = found[0]
        yield Finding(
            id="non_finite",
            severity="error",
            title=f"NaN or infinity in {listed([one.layer for one in found])}",
            layers=tuple(one.layer for one in found),
            evidence=tuple(
                Figure(first.layer, f"channels with {words}", float(len(getattr(first, kind))), 0.0)
                for kind, words in kinds
                if getattr(first, kind)
            ),
            meaning=(
                "What is not finite spreads to all that is computed from it. Running statistics "
                "keep it for good: a moving average of NaN is NaN, so eval mode stays broken after "
                "one bad batch, while train mode may look well."
            ),
            threshold="One such value. The first layer in the model's order is where to look.",
            advice=(
                "Find the cause at or before the first layer named: a bad batch, a division by 0, "
                "float16 overflow. Then reset and calibrate."
            ),
            code=_CODE if any(one.bad_statistics for one in found) else "",
            gain="Eval mode gives numbers again.",
            weight=_FIRST,
        )
    yield from _overflow(survey)


def _overflow(survey: Survey) -> Iterator[Finding]:
    near = [one for one in survey.of(ChannelHealth) if (one.headroom or 0) >= HEADROOM]
    near.sort(key=lambda one: -(one.headroom or 0))
    if not near:
        return
    worst = near[0]
    share = worst.headroom or 0.0
    yield Finding(
        id="non_finite",
        severity="warning",
        title=f"Inputs of {worst.layer} reach {share:.0%} of the largest number of their dtype",
        layers=tuple(one.layer for one in near),
        evidence=(Figure(worst.layer, "of the largest number", 100 * share, 100 * HEADROOM, "%"),),
        meaning=(
            "A little more, and the input is infinite: the batch is lost, and with it the running "
            "statistics, which keep NaN for good. float16 ends at 65,504."
        ),
        threshold=f"{HEADROOM:.0%}: a factor of 4 below overflow, little against outliers.",
        advice="Use bfloat16, which has the range of float32, or scale down what comes before.",
        code="",
        gain="No batch is lost to overflow.",
        weight=share / HEADROOM,
    )
