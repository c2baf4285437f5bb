"""Biases that the norm behind them takes away again."""

from collections.abc import Iterator

from renorm.findings.finding import Figure, Finding
from renorm.findings.rules.reading import trained
from renorm.measure.records import MODEL, Survey


def redundant_bias(survey: Survey) -> Iterator[Finding]:
    """A layer with a bias in front of a norm that subtracts the mean."""
    found = [one for one in trained(survey).values() if one.source and one.source_bias]
    if not found:
        return
    pairs = [
        (one.layer, one.source) for one in found if one.statistics in ("updated", "not updated")
    ]
    yield Finding(
        id="redundant_bias",
        severity="note",
        title=(
            "1 layer has a bias that the norm behind it cancels"
            if len(found) == 1
            else f"{len(found)} layers have a bias that the norm behind them cancels"
        ),
        layers=tuple(one.layer for one in found),
        evidence=(Figure(MODEL, "norms behind a layer with a bias", float(len(found)), 0.0),),
        meaning=(
            "The norm subtracts the mean, and with it the bias of the layer before it. That bias "
            "has no effect, gets no gradient but from weight decay, and costs an addition and a "
            "parameter a channel; the norm's own bias does its work."
        ),
        threshold="One pair; Ioffe and Szegedy 2015, section 3.2, leave the bias out.",
        advice=(
            "Build such layers with bias=False. The code takes the bias out of a trained model; "
            "make a new optimizer afterwards."
        ),
        code=_code(pairs),
        gain=(
            "A little less time and memory. Outputs stay the same where nothing but the norm uses "
            "the output of the layer."
        ),
        weight=1.0,
    )


def _code(pairs: list[tuple[str, str | None]]) -> str:
    if not pairs:
        return ""
    listed = "".join(f"    ({norm!r}, {source!r}),\n" for norm, source in pairs)
    return (
        "import torch\n\n"
        f"pairs = [\n{listed}]\n"
        "with torch.no_grad():\n"
        "    for name, source in pairs:\n"
        "        before = model.get_submodule(source)\n"
        "        if before.bias is not None:\n"
        "            model.get_submodule(name).running_mean -= before.bias\n"
        "            before.bias = None\n"
    )
