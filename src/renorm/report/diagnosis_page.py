"""A diagnosis as one self-contained HTML page."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from renorm.findings import Finding
from renorm.measure.records import MODEL, FixTrial, Note, Survey
from renorm.report import diagnosis_wording as wording
from renorm.report import health_plot, layer_plots, model_plots, skeleton, trial_plot, trials
from renorm.report.layer_table import layer_table
from renorm.report.plots import Plot
from renorm.report.rows import MOST_NAMES
from renorm.report.wording import counted

Rows = Callable[[Survey, Sequence[str], Sequence[str]], tuple[Plot, ...]]
Whole = Callable[[Survey], tuple[Plot, ...]]

OF_LAYERS: dict[str, Rows] = {
    "gap": layer_plots.gap,
    "ranges": layer_plots.ranges,
    "dependence": layer_plots.dependence,
    "count": layer_plots.count,
    "influence": layer_plots.influence,
    "health": health_plot.health,
    "ranks": layer_plots.ranks,
}
OF_MODEL: dict[str, Whole] = {
    "modes": model_plots.modes,
    "composition": model_plots.composition,
    "tiles": model_plots.tiles,
}
PLOTS = {
    "stale_statistics": ("gap", "modes"),
    "shifted_domain": ("gap", "modes"),
    "small_batch": ("ranges", "count"),
    "single_value": ("count",),
    "dependent_batches": ("dependence",),
    "batch_leak": ("influence",),
    "composition_overfit": ("composition",),
    "dead_channels": ("health",),
    "eps_dominated": ("health",),
    "saturated_channels": ("health",),
    "non_finite": ("health",),
    "momentum_convention": ("gap", "modes"),
    "never_updated": ("gap", "modes"),
    "mixed_modes": ("gap",),
    "ranks_differ": ("ranks",),
    "accumulation": ("count", "ranges"),
    "train_mode_export": ("modes",),
    "limits_open_early": ("ranges",),
    "limits_never_open": ("ranges",),
    "tile_artifacts": ("tiles",),
}
LISTED = 4  # layers that are named without being asked for


@dataclass(frozen=True)
class Shown:
    """A finding with its plots.

    Args:
        finding: what to show.
        severity: it, and what it means, in words.
        layers: names as they are shown, the worst first.
        plots: of what it rests on.
        partly: whether the plots have some of the layers only.
    """

    finding: Finding
    severity: str
    layers: tuple[str, ...]
    plots: tuple[Plot, ...]
    partly: bool


def write(
    path: Path,
    survey: Survey,
    findings: Sequence[Finding],
    command: str,
    environment: Mapping[str, str | None] | None = None,
) -> None:
    """Write the page of a diagnosis to a file; for the arguments see ``render``.

    Raises:
        RecordError: the file cannot be written.
        MissingExtraError: jinja2, plotly or scipy is not installed.
    """
    skeleton.write(path, render(survey, findings, command, environment))


def render(
    survey: Survey,
    findings: Sequence[Finding],
    command: str,
    environment: Mapping[str, str | None] | None = None,
) -> str:
    """The page as text; the same arguments give the same text.

    Args:
        survey: what was measured, fixes that were tried included.
        findings: the worst first.
        command: what made the page, to be typed again; empty for none.
        environment: name -> value of what it was made with; None for an unknown value.

    Raises:
        MissingExtraError: jinja2, plotly or scipy is not installed.
    """
    shown = [_shown(survey, one) for one in findings]
    measurements = _measurements(survey)
    ranked = trials.ranked(survey.of(FixTrial))
    gains = trial_plot.gains(ranked)
    placed = [
        *((f"finding-{place}", one.plots) for place, one in enumerate(shown, 1)),
        ("fixes", gains),
        ("all", measurements),
    ]
    return skeleton.render(
        "diagnosis.html",
        {
            f"{prefix}-{plot.name}-{place}": panel.figure
            for prefix, plots in placed
            for plot in plots
            for place, panel in enumerate(plot.panels)
        },
        ("diagnosis.css", "copy.js"),
        survey=survey,
        verdict=wording.verdict(survey, findings),
        counts=wording.counts(findings),
        measured=wording.measured(survey),
        caveat=wording.caveat(survey),
        findings=shown,
        figure=wording.number,
        name_of=wording.name_of,
        ranked=ranked,
        gains=gains,
        helps=trials.conclusion(ranked),
        gain_of=trials.gain_of,
        cost_of=trials.cost_of,
        loss_of=lambda one: "-" if one.loss is None else trials.figure(one.loss),
        measurements=measurements,
        layers=layer_table(survey),
        notes=_notes(survey),
        setting=wording.setting(survey),
        command=command,
        environment=_entries(environment),
        counted=counted,
        listed_without_asking=LISTED,
        rows_without_asking=MOST_NAMES,
    )


def _shown(survey: Survey, finding: Finding) -> Shown:
    layers = list(survey.layers())
    about = [name for name in finding.layers if name in layers]
    partly = len(layers) > MOST_NAMES and bool(about)
    if partly:
        worst = set(about[:MOST_NAMES])
        layers = [name for name in layers if name in worst]
    marked = about if set(layers) - set(about) else []
    plots = [
        plot for name in PLOTS.get(finding.id, ()) for plot in _plot(name, survey, layers, marked)
    ]
    severity = f"{finding.severity}: {wording.MEANINGS[finding.severity]}"
    names = tuple(map(wording.name_of, finding.layers))
    return Shown(finding, severity, names, tuple(plots), partly)


def _plot(
    name: str, survey: Survey, layers: Sequence[str], marked: Sequence[str]
) -> tuple[Plot, ...]:
    if name in OF_MODEL:
        return OF_MODEL[name](survey)
    return OF_LAYERS[name](survey, layers, marked)


def _measurements(survey: Survey) -> list[Plot]:
    """All plots for which there is something to draw."""
    layers = list(survey.layers())
    names = ("modes", *OF_LAYERS, "composition", "tiles")
    return [plot for name in names for plot in _plot(name, survey, layers, ())]


def _notes(survey: Survey) -> list[tuple[str, str, tuple[str, ...]]]:
    """(quantity, reason, layers) of what could not be measured; the same reason once."""
    found: dict[tuple[str, str], list[str]] = {}
    for one in survey.of(Note):
        found.setdefault((one.quantity, one.reason), []).append(one.layer)
    return [
        (quantity, reason, tuple(wording.name_of(name) for name in layers if name != MODEL))
        for (quantity, reason), layers in found.items()
    ]


def _entries(environment: Mapping[str, str | None] | None) -> list[tuple[str, Any]]:
    return [(name, "unknown" if v is None else v) for name, v in (environment or {}).items()]
