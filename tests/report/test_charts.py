import math
import re
from dataclasses import replace
from typing import Any

import pytest

from renorm.report.charts import charts
from renorm.report.comparison import compare
from renorm.report.palette import styles
from renorm.report.panels import Chart
from renorm.report.records import Record
from report.constructed import PLAIN, diverged, failed, finished, wanted
from report.whole import grid, plain


def drawn(records: list[Record]) -> dict[str, Chart]:
    comparison = compare([one.specification for one in records], records)
    return {chart.name: chart for chart in charts(comparison, records)}


def lines(panel: Any) -> dict[str, dict]:
    return {trace["name"]: trace for trace in panel.figure["data"] if "name" in trace}


def coloured(value: Any) -> Any:
    """The figure as the page's script hands it to plotly.js."""
    if isinstance(value, dict):
        return {key: coloured(one) for key, one in value.items()}
    if isinstance(value, list):
        return [coloured(one) for one in value]
    if isinstance(value, str) and value.startswith("var("):
        return re.sub(r"^var\(--[\w-]+\)([0-9a-f]{2})?$", "#123456", value)
    return value


def test_every_figure_is_one_that_plotly_knows() -> None:
    objects = pytest.importorskip("plotly.graph_objects", reason="plotly is not installed")
    for chart in drawn(grid(2)).values():
        for panel in chart.panels:
            objects.Figure(coloured(panel.figure))


def test_a_panel_a_condition_and_the_same_colours_everywhere() -> None:
    got = drawn(grid(2))
    assert list(got) == ["scores", "curves", "correction-r", "correction-d"]
    for chart in got.values():
        assert [panel.heading for panel in chart.panels] == ["iid", "microbatch", "clustered"]
    colour = {
        trace["line"]["color"]
        for chart in (got["curves"], got["correction-r"], got["correction-d"])
        for panel in chart.panels
        for name, trace in lines(panel).items()
        if name == "batch renorm"
    }
    assert colour == {styles(["batch_renorm"])["batch_renorm"].colour} == {"var(--series-1)"}
    assert got["correction-r"].normalizers == ("batch_renorm",)


def test_known_normalizers_look_the_same_in_any_company_and_no_two_alike() -> None:
    some = styles(["mine", "group_norm", "yours"])
    assert some["group_norm"] == styles(["batch_norm", "group_norm"])["group_norm"]
    assert len({(one.colour, one.dash, one.symbol) for one in some.values()}) == 3


def test_a_curve_is_the_mean_with_its_interval() -> None:
    runs = wanted("batch_norm", seeds=3)
    records = [replace(finished(one, 0.5), curve=((10, 0.1 * one.seed), (20, 0.5))) for one in runs]
    (panel,) = drawn(records)["curves"].panels
    area, line = panel.figure["data"]
    assert line["x"] == [10, 20]
    assert line["y"] == pytest.approx([10, 50])
    # scores 0, 10, 20: s = 10
    half = 4.30265 * 10 / math.sqrt(3)
    assert area["x"] == [10, 20, 20, 10]
    assert area["y"] == pytest.approx([10 + half, 50, 50, 10 - half], rel=1e-5)
    assert "batch norm 50.0 ± 0.0" in panel.alternative


def test_curves_leave_out_what_diverged_or_failed() -> None:
    runs = wanted("batch_norm", seeds=3)
    lost = replace(diverged(runs[1]), curve=((50, 0.9),))
    (panel,) = drawn([finished(runs[0], 0.5), lost, failed(runs[2])])["curves"].panels
    assert lines(panel)["batch norm"]["x"] == [100]


def test_corrections_have_quantile_bands_and_the_schedule() -> None:
    got = drawn(grid(2))
    for name, limits in (("correction-r", (3, 1 / 3)), ("correction-d", (5, -5))):
        data = got[name].panels[0].figure["data"]
        outer, inner, upper, lower, median = data
        assert (upper["y"][-1], lower["y"][-1]) == pytest.approx(limits)
        assert upper["line"]["dash"] == lower["line"]["dash"] == "dash"
        count = len(median["x"])
        assert max(outer["y"][:count]) > max(inner["y"][:count])
        assert outer["x"] == [*median["x"], *reversed(median["x"])]
        lowest, low, high, highest = (
            outer["y"][count],
            inner["y"][count],
            inner["y"][count - 1],
            outer["y"][count - 1],
        )
        assert lowest < low < median["y"][-1] < high < highest
    axis = got["correction-r"].panels[0].figure["layout"]["yaxis"]
    assert axis["type"] == "log"
    assert axis["range"][1] == pytest.approx(1.08 * math.log10(3))
    assert "4% at a limit" in got["correction-r"].panels[0].alternative


def test_corrections_are_averaged_over_seeds() -> None:
    corrected = [one for one in grid(2) if one.corrections]
    first, second = (one for one in corrected if one.specification.condition == "iid")
    twice = replace(
        second, corrections=tuple(replace(one, d=(0.0,) * 5) for one in second.corrections)
    )
    data = drawn([first, twice])["correction-d"].panels[0].figure["data"]
    assert data[-1]["y"][-1] == pytest.approx(first.corrections[-1].d[2] / 2)


def test_no_corrections_no_chart_and_no_scores_none_at_all() -> None:
    assert list(drawn([finished(PLAIN, 0.5)])) == ["scores", "curves"]
    assert drawn([failed(PLAIN)]) == {}


def test_another_metric_has_its_own_axis() -> None:
    got = drawn([plain(one, -200.0 + one.seed) for one in wanted("batch_norm", seeds=2)])
    layout = got["scores"].panels[0].figure["layout"]
    assert layout["xaxis"]["title"]["text"] == "return"
    low, high = layout["xaxis"]["range"]
    assert low < -200 < -199 < high < 0


def test_plotly_is_given_no_markup() -> None:
    hostile = replace(PLAIN, normalizer="<b>bold</b>")
    records = [replace(finished(hostile, 0.5), metric='<a href="x">')]
    chart = drawn(records)["curves"]
    assert list(lines(chart.panels[0])) == ["&lt;b&gt;bold&lt;/b&gt;"]
    assert "<" not in chart.panels[0].figure["layout"]["yaxis"]["title"]["text"]
