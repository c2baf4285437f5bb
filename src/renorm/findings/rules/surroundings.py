"""What lies around a model: a conversion, other processes, gradient accumulation."""

from collections.abc import Iterator

from renorm.findings.finding import Figure, Finding
from renorm.findings.rules.reading import (
    conversion,
    counted,
    is_ours,
    listed,
    of_model,
    trained,
)
from renorm.findings.rules.small_batch import FEW, NOISE, NOISE_OF_FEW, WRONG, noisy
from renorm.measure.records import MODEL, Converted, LayerFacts, RankSpread, Setting, Survey

_ACCUMULATE = """
with renorm.accumulate(model):
    for batch in batches:
        inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
        outputs = model(inputs)  # loss and backward, as before
"""

APART = 0.25
WRONG_APART = 1.0


def norm_lost(survey: Survey) -> Iterator[Finding]:
    """Layers of this package, or any norm, that a conversion took away."""
    lost = [one for one in survey.of(Converted) if one.was_renorm and not one.is_renorm]
    gone = [one for one in survey.of(Converted) if not one.was_renorm and not one.after]
    found = lost or gone
    if not found:
        return
    first = found[0]
    after = first.after or "nothing"
    synced = any("Sync" in one.after for one in lost)
    yield Finding(
        id="norm_lost",
        severity="error"
        if any("Sync" in one.after or not one.after for one in lost)
        else "warning",
        title=f"{counted(len(found), first.before)} became {after}",
        layers=tuple(one.layer for one in found),
        evidence=(Figure(MODEL, "layers lost", float(len(found)), 0.0),),
        meaning=(
            "A conversion replaced these layers: limits, and with them the correction by running "
            "statistics, are gone, and training is that of batch norm again. "
            "convert_sync_batchnorm of torch and timm takes every batch norm, subclasses too."
            if lost
            else "The model no longer normalizes at these places."
        ),
        threshold=(
            "One layer; a warning where plain batch norm came back, as renorm.to_batchnorm does on "
            "purpose. convert_sync_batchnorm of torch says nothing of it (pytorch issue 187298)."
        ),
        advice=(
            "Share statistics by batch renorm itself, instead of converting to SyncBatchNorm."
            if synced
            else "Convert after all else that replaces layers, or convert once more."
            if lost
            else "Compare the outputs in eval mode with those of before."
        ),
        code=(
            "import renorm\n\n"
            'renorm.convert(model, sync="batch")  # or "running": no waiting, one exchange a step\n'
            if synced
            else (conversion(survey) if lost else "")
        ),
        gain=(
            "The layers correct by running statistics again."
            if lost
            else "Nothing, if they were folded into the layers before on purpose."
        ),
        weight=5.0 if lost else 1.0,
    )


def ranks_differ(survey: Survey) -> Iterator[Finding]:
    """Running statistics that are not the same in all processes."""
    found = [(max(one.shift or 0.0, one.log_ratio or 0.0), one) for one in survey.of(RankSpread)]
    found = sorted((pair for pair in found if pair[0] > 0), key=lambda pair: -pair[0])
    if not found:
        return
    value, worst = found[0]
    severity = "error" if value >= WRONG_APART else "warning" if value >= APART else "note"
    ours = any(is_ours(one) for one in survey.of(LayerFacts))
    yield Finding(
        id="ranks_differ",
        severity=severity,
        title=f"Running statistics of {worst.processes} processes differ by {value:.2g} deviations",
        layers=tuple(one.layer for _, one in found),
        evidence=(
            Figure(worst.layer, "largest difference from the mean of all", value, APART),
            *([Figure(worst.layer, "shift", worst.shift)] if worst.shift is not None else []),
            *(
                [Figure(worst.layer, "log ratio of deviations", worst.log_ratio)]
                if worst.log_ratio is not None
                else []
            ),
        ),
        meaning=(
            "Each process averages its own batches. Eval mode, and the checkpoint of one process, "
            "then have the statistics of a part of the data; DistributedDataParallel overwrites "
            "those of all others by rank 0's."
        ),
        threshold=(
            f"Any difference is noted. {APART:g} deviations is the threshold of stale statistics, "
            f"{WRONG_APART:g} is data of another domain in each process."
        ),
        advice=(
            "Share the running statistics: one sum a step, that nothing waits for."
            if ours
            else "Convert to batch renorm that shares its running statistics."
        ),
        code=(
            "import renorm\n\n"
            'renorm.convert(model, sync="running")\n'
            "renorm.distributed.sync_running(model)\n"
        ),
        gain="All processes, and every checkpoint, have the statistics of all data, bit for bit.",
        weight=value / APART,
    )


def accumulation(survey: Survey) -> Iterator[Finding]:
    """Gradients of several forwards added up, each with statistics of its own."""
    setting, layers = of_model(survey, Setting), trained(survey)
    if setting is None or setting.accumulation < 2 or not layers:
        return
    found = noisy(survey)
    ours = tuple(name for name, one in layers.items() if is_ours(one))
    worst = found[0] if found else None
    noise = 0.0 if worst is None else worst.noise
    most = NOISE_OF_FEW if worst is not None and worst.examples <= FEW else NOISE
    figures = [Figure(MODEL, "forwards a step", float(setting.accumulation), 1.0)]
    if worst is not None:
        figures += [
            Figure(worst.layer, "noise of a batch's mean, in standard deviations", noise, most),
            Figure(worst.layer, "examples that share statistics", worst.examples),
        ]
    bad = noise >= WRONG
    yield Finding(
        id="accumulation",
        severity="error" if bad else "warning" if noise >= most or ours else "note",
        title=f"{setting.accumulation} forwards a step, each normalized by its own statistics",
        layers=ours or tuple(one.layer for one in found) or tuple(layers),
        evidence=tuple(figures),
        meaning=(
            "Accumulation makes the gradient that of a large batch, not the statistics: each "
            f"forward of {listed(tuple(layers))} normalizes by its own micro-batch, and moves the "
            "running statistics. In batch renorm the reference then moves between the forwards of "
            "one gradient, and the schedule of the limits runs as many times as fast."
        ),
        threshold=(
            "More than one forward a step; a warning where the layers are batch renorm, or the "
            f"statistics of a micro-batch as noisy as for small_batch ({most:g} deviations)."
        ),
        advice=(
            "Make the forwards of a step one step of the statistics, by renorm.accumulate, with "
            "batch renorm to correct each of them."
        ),
        code=("import renorm\n" if ours else conversion(survey)) + _ACCUMULATE,
        gain=(
            "Statistics and schedule take one step a gradient step, as in Caffe's batch renorm; "
            "the noise of a micro-batch is corrected as far as the limits allow."
        ),
        weight=max(1.1 * noise / most, 1.0),
    )
