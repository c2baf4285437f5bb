"""Limits of batch renorm that are open too early, or never."""

from collections.abc import Iterator

from renorm.findings.finding import Figure, Finding
from renorm.findings.rules.reading import is_ours, listed, of_model, steps_of
from renorm.measure.records import LayerFacts, LimitsAhead, Setting, Survey

R_MAX, D_MAX = 1.1, 0.1


def limits_open_early(survey: Survey) -> Iterator[Finding]:
    """Fine-tuning with a schedule that goes on at the step of the checkpoint."""
    setting = of_model(survey, Setting)
    if setting is None or setting.purpose != "finetuning":
        return
    found = [one for one in survey.of(LayerFacts) if _is_open(one)]
    if not found:
        return
    worst = max(found, key=lambda one: (one.d_max, one.r_max))
    steps = steps_of(survey)
    yield Finding(
        id="limits_open_early",
        severity="warning",
        title=(
            f"Fine-tuning begins with limits open: r_max {worst.r_max:.3g}, d_max {worst.d_max:.3g}"
        ),
        layers=tuple(one.layer for one in found),
        evidence=(
            Figure(worst.layer, "updates before this run", float(worst.updates or 0), 0.0),
            *_finite(worst.layer, (("r_max", worst.r_max, R_MAX), ("d_max", worst.d_max, D_MAX))),
        ),
        meaning=(
            "The step count of the schedule came with the checkpoint, so there is no phase of "
            f"batch norm in which the running statistics of {listed([one.layer for one in found])} "
            "could settle on the new data: r and d correct towards those of the old."
        ),
        threshold=(
            f"r_max {R_MAX:g} or d_max {D_MAX:g} at the start, from a schedule that rises and a "
            "counter above 0. Ioffe 2017 keeps to batch norm for 5,000 steps first; constant "
            "limits are taken as meant."
        ),
        advice=(
            "Measure the statistics on the new data and keep to tight, constant limits, or "
            "restart the schedule."
        ),
        code=(
            "import renorm\n\n"
            "renorm.calibrate(model, batches)\n"
            "for layer in model.modules():\n"
            "    if isinstance(layer, renorm.nn.BatchRenorm):\n"
            "        layer.limits = renorm.limits.fixed(1.5, 0.5)\n"
            f"        # or: layer.limits = renorm.limits.over({steps or 10_000:_})\n"
            "        layer.restart_limits()\n"
        ),
        gain=(
            "The reference is that of the new data from the first step; AR1* fine-tunes with "
            "limits up to 1.25 and 0.5."
        ),
        weight=2.0,
    )


def limits_never_open(survey: Survey) -> Iterator[Finding]:
    """Schedules whose ramp lies behind the end of the run."""
    facts = {one.layer: one for one in survey.of(LayerFacts)}
    found = [
        one
        for one in survey.of(LimitsAhead)
        if one.r_max < R_MAX
        and one.d_max < D_MAX
        and one.layer in facts
        and facts[one.layer].limits != "r_max 1, d_max 0"
        and facts[one.layer].statistics != "frozen"
    ]
    if not found:
        return
    worst = found[0]
    yield Finding(
        id="limits_never_open",
        severity="warning",
        title=f"After {worst.steps:,} more steps the limits are still those of batch norm",
        layers=tuple(one.layer for one in found),
        evidence=(
            Figure(worst.layer, "steps to the end of the run", float(worst.steps)),
            Figure(worst.layer, "r_max at the end", worst.r_max, R_MAX),
            Figure(worst.layer, "d_max at the end", worst.d_max, D_MAX),
        ),
        meaning=(
            f"The schedule is '{facts[worst.layer].limits}', and the run ends before its ramp: all "
            "of it is plain batch norm, with the noise and the dependence on the batch that batch "
            "renorm was to take out."
        ),
        threshold=(
            f"r_max below {R_MAX:g} and d_max below {D_MAX:g} at the last step. The schedule of "
            "the paper begins at step 5,000 and ends at 40,000 (Ioffe 2017), for a run of some "
            "100,000."
        ),
        advice="Scale the schedule to the run; below some 6,000 steps also raise momentum to 0.1.",
        code=(
            "import renorm\n\n"
            "for layer in model.modules():\n"
            "    if isinstance(layer, renorm.nn.BatchRenorm):\n"
            f"        layer.limits = renorm.limits.over({max(worst.steps, 1):_})\n"
            "        layer.restart_limits()\n"
        ),
        gain="The layers are batch renorm for 60 to 95 % of the run, as in the paper.",
        weight=2.0,
    )


def _is_open(layer: LayerFacts) -> bool:
    """Whether its schedule rises, was begun before, and is no longer at batch norm."""
    rises = is_ours(layer) and ("->" in layer.limits or "limits by" in layer.limits)
    begun = layer.statistics != "frozen" and (layer.updates or 0) > 0
    return rises and begun and (layer.r_max >= R_MAX or layer.d_max >= D_MAX)


def _finite(layer: str, entries: tuple[tuple[str, float, float], ...]) -> list[Figure]:
    return [Figure(layer, name, v, most) for name, v, most in entries if v < float("inf")]
