"""What the fixes that were tried gained: a dot a seed, and the mean with its interval."""

from collections.abc import Sequence
from typing import Any

from renorm.measure.records import AS_IT_IS
from renorm.report.diagnosis_wording import finite, number
from renorm.report.palette import Style
from renorm.report.palette import series as look
from renorm.report.panels import Panel, Trace, safe
from renorm.report.plots import Plot, plot
from renorm.report.rows import FAINT, frame, line_at
from renorm.report.trials import Ranked, figure


def gains(found: Sequence[Ranked]) -> tuple[Plot, ...]:
    """Gains of the fixes that have any, the best on top."""
    shown = [one for one in found if one.gain is not None and one.trial.fix != AS_IT_IS]
    if not shown:
        return ()
    rows = [one.trial.fix for one in shown]
    layout: dict[str, Any] = {
        "xaxis": {"title": {"text": "how much lower the loss is"}},
        "shapes": [line_at(0.0)],
        **frame(rows, [one.trial.fix for one in shown if one.helps]),
    }
    told = [f"{one.trial.fix} {figure(one.gain, True)}" for one in shown if one.gain]
    alternative = f"Gain in loss of each fix, the best first: {'; '.join(told)}."
    data = [trace for place, one in enumerate(shown) for trace in _traces(place, one)]
    drawn = Panel("Gain in loss", alternative, {"data": data, "layout": layout})
    about = (
        "How much lower the loss on batches held out is than that of the given model. Right of "
        "the dashed line it is lower; what training alone gives is the row of further training. "
        "Small dots are seeds, the large one is their mean with Student's 95 % interval; names in "
        "bold are of fixes that are clearly better than the given model and, if they train, than "
        "further training."
    )
    return plot("gains", "Gain of each fix", about, [drawn])


def _traces(place: int, one: Ranked) -> list[Trace]:
    style: Style = look(2 if one.helps else 6)
    values = [value for value in one.trial.gains if value is not None and finite(value)]
    common = {"type": "scatter", "mode": "markers", "hovertemplate": "%{text}<extra></extra>"}
    mean = one.gain
    if mean is None:
        return []
    name = safe(one.trial.fix)
    return [
        {
            **common,
            "x": values,
            "y": [place] * len(values),
            "text": [f"{name}<br>{number(value)} with a seed" for value in values],
            "marker": {"color": style.colour, "opacity": FAINT, "size": 7},
        },
        {
            **common,
            "x": [mean.mean],
            "y": [place],
            "text": [f"{name}<br>{figure(mean, True)}"],
            "error_x": {
                "type": "data",
                "array": [mean.half_width or 0.0],
                "color": style.colour,
                "thickness": 2,
            },
            "marker": {"color": style.colour, "size": 11, "symbol": style.symbol},
        },
    ]
