import itertools
import json
import math
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from renorm.errors import RecordError
from renorm.findings import SEVERITIES, Finding
from renorm.measure.records import Survey, TrainEvalGap
from renorm.report import diagnosis_page
from report.diagnosed import (
    NAMES,
    bare,
    empty_handed,
    findings,
    leak,
    long_names,
    small,
    stale,
    surveyed,
    trials,
)
from report.reading import Read
from report.whole import HOSTILE

COMMAND = "renorm doctor net:make --html 'my page.html'"


def rendered(survey: Survey, found: tuple[Finding, ...] = ()) -> Read:
    text = diagnosis_page.render(survey, found, COMMAND, {"torch": "2.13.0", "gpu": None})
    assert len(text.encode()) < 6_000_000
    return Read(text)


def figures(page: Read) -> dict[str, Any]:
    return json.loads(page.scripts[0])["figures"]


def whole() -> Read:
    return rendered(surveyed(NAMES, *trials(), renorm=True), findings())


def hostile(value: Any) -> Any:
    """The same with markup in every text, but for what has a fixed set of values."""
    if isinstance(value, str) and value not in {*SEVERITIES, "(model)"}:
        return value + HOSTILE
    if isinstance(value, tuple):
        return tuple(map(hostile, value))
    if not is_dataclass(value) or isinstance(value, type):
        return value
    kept = {"id", "of"}
    entries = {f.name: getattr(value, f.name) for f in fields(value) if f.name not in kept}
    return replace(value, **{name: hostile(one) for name, one in entries.items()})


def test_verdict_first_then_findings_fixes_layers_notes_and_where_it_comes_from() -> None:
    text = whole().text
    first = findings()[0]
    parts = (
        f"Normalization hurts this model: {first.title}.",
        "Of 4 fixes tried, batch renorm is first: its loss is lower by 0.583 ± 0.072 over 3",
        "1 error, 1 warning and 1 note, the worst first:",
        f"costs accuracy or breaks {first.title}",
        first.meaning,
        first.advice,
        "renorm.calibrate(model, batches)",
        first.gain,
        "stem.bn 0.83 0.1 staleness, in deviations of the output",
        first.threshold,
        f"is likely to cost accuracy {findings()[1].title}",
        f"is worth knowing {findings()[2].title}",
        "the whole model 40 % 10 % influence on others",
        "Fixes, the best first",
        "6 normalization layers, from the input",
        "composition shift Batches have one example. the whole model",
        COMMAND,
        "steps left 20,000",
        "gpu unknown",
    )
    places = [text.index(part) for part in parts]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ((), "Healthy, nothing is wrong with the normalization of this model."),
        ((leak(),), "Healthy, nothing is wrong with the normalization of this model. 1 note:"),
        ((small(), leak()), "Normalization is likely to hurt this model: Batches are too small"),
        ((stale(),), "Normalization hurts this model: Running statistics do not describe"),
    ],
)
def test_the_verdict_is_that_of_the_worst_finding(found: tuple[Finding, ...], words: str) -> None:
    assert f"Verdict {words}" in rendered(surveyed(), found).text


def test_severity_is_in_words_and_findings_can_be_reached_from_the_verdict() -> None:
    page = whole()
    for words in ("error costs accuracy or breaks", "warning is likely to cost accuracy"):
        assert words in page.text
    links = [value[1:] for value in page.given("href") if value.startswith("#")]
    assert {"finding-1", "finding-2", "finding-3", "fixes"} <= set(links) <= set(page.given("id"))


def test_each_finding_has_its_plots_and_marks_its_layers() -> None:
    drawn = figures(whole())
    own = {name.rpartition("-")[0] for name in drawn if name.startswith("finding-")}
    assert own == {
        "finding-1-gap",
        "finding-1-modes",
        "finding-2-ranges",
        "finding-2-count",
        "finding-3-influence",
    }
    labels = drawn["finding-2-count-0"]["layout"]["yaxis"]["ticktext"]
    assert [label.startswith("<b>") for label in labels] == [True] * 3 + [False] * 3
    assert "<b>" not in json.dumps(drawn["all-count-0"])
    opacities = drawn["finding-2-count-0"]["data"][0]["marker"]["opacity"]
    assert opacities[0] > opacities[-1] > 0


def test_every_known_finding_has_a_plot_or_rests_on_no_figure() -> None:
    without = ["redundant_bias", "norm_lost", "of_a_later_version"]
    names = [*diagnosis_page.PLOTS, *without]
    found = tuple(replace(stale(), id=name) for name in names)
    drawn = figures(rendered(surveyed(NAMES, renorm=True), found))
    places = {int(one.split("-")[1]) for one in drawn if one.startswith("finding-")}
    assert places == set(range(1, len(diagnosis_page.PLOTS) + 1))


def test_ranges_are_quantiles_and_limits_are_drawn_where_the_axis_reaches() -> None:
    drawn = figures(rendered(surveyed(("bn",), renorm=True)))
    size = 0.2 + 0.8 * math.sin(1) ** 2
    shift, scale = drawn["all-ranges-0"], drawn["all-ranges-1"]
    outer, inner, median, now, ahead = shift["data"]
    assert outer["x"] == [
        pytest.approx(-0.5 * size, rel=1e-4),
        pytest.approx(0.6 * size, rel=1e-4),
        None,
    ]
    assert inner["x"] == [
        pytest.approx(-0.15 * size, rel=1e-4),
        pytest.approx(0.2 * size, rel=1e-4),
        None,
    ]
    assert median["x"] == pytest.approx([0.02 * size], rel=1e-4)
    assert [x for x in now["x"] if x] == [-0.4, -0.4, 0.4, 0.4]
    assert [x for x in ahead["x"] if x] == [-0.7, -0.7, 0.7, 0.7]
    assert now["line"]["dash"] != ahead["line"]["dash"]
    assert scale["layout"]["xaxis"]["type"] == "log"
    low, high = scale["layout"]["xaxis"]["range"]
    assert low == pytest.approx(-high)
    ends = [x for x in scale["data"][3]["x"] if x]
    assert ends == pytest.approx([1 / 1.5, 1 / 1.5, 1.5, 1.5], rel=1e-4)
    plain = figures(rendered(surveyed(("bn",))))["all-ranges-0"]["data"]
    assert len(plain) == 3  # batch norm has no limits


def test_trials_are_ranked_and_drawn_by_seed() -> None:
    page = whole()
    rows = (
        "1 batch renorm +0.583 ± 0.072 0.417 ± 0.190 1.12 50 3 helps",
        "2 calibrate +0.300 ± 0.000 0.700 ± 0.248 no training 0 3 helps",
        "3 as it is +0.000",
        "4 longer EMA -0.10 ± 2.54 1.05 ± 1.91 1.00 50 3 diverged with 1 of 3 seeds",
        "- cross-iteration - - - 50 3 not tried: The model is compiled.",
    )
    places = [page.text.index(row) for row in rows]
    assert places == sorted(places)
    data = figures(page)["fixes-gains-0"]["data"]
    assert [trace["x"] for trace in data[:2]] == [[0.6, 0.6, 0.55], [pytest.approx(0.58333, 1e-4)]]
    assert len(data) == 6  # the model as it is, and what was not tried, are no gains


def test_a_model_of_160_layers_with_long_names_stays_small_and_every_name_is_told() -> None:
    names = long_names(160)
    page = rendered(surveyed(names), findings(names))
    drawn = figures(page)
    for name, figure in drawn.items():
        assert figure["layout"]["height"] < 900, name
        assert len(figure["layout"]["yaxis"]["tickvals"]) <= 25, name
        assert max(map(len, figure["layout"]["yaxis"]["ticktext"])) <= 30, name
        assert len(set(figure["layout"]["yaxis"]["ticktext"])) == len(
            figure["layout"]["yaxis"]["ticktext"]
        )
    assert len(drawn["all-gap-0"]["data"][0]["x"]) == 160
    assert len(drawn["finding-1-gap-0"]["data"][0]["x"]) == 24
    assert "160 layers, the worst first" in page.text
    assert all(page.text.count(name) >= 2 for name in names)


def test_without_figures_there_is_no_chart_and_the_page_says_why() -> None:
    page = rendered(bare())
    assert figures(page) == {}
    assert "The measurement was interrupted" in page.text
    assert "Nothing wrong was found so far, but not all that was asked for" in page.text
    assert "survey No batch reached the layer. stem.bn" in page.text
    page = rendered(empty_handed(), findings(("bn",)))
    assert "all-count-0" in figures(page)
    assert "no finite loss with 1 of 1 seed" in page.text
    assert "r inf, d inf" in page.text


def test_all_text_is_escaped_and_plotly_is_given_no_markup() -> None:
    survey, found = hostile(surveyed(NAMES, *trials(), renorm=True)), hostile(findings())
    page = Read(diagnosis_page.render(survey, found, HOSTILE, {HOSTILE: HOSTILE}))
    assert page.elements["script"] == whole().elements["script"]
    assert page.elements["img"] == 0
    assert page.open == []
    assert HOSTILE in page.text
    assert "<img" not in json.dumps(figures(page))
    assert "<script" not in json.dumps(figures(page))


def test_headings_are_in_order_tables_have_headers_and_charts_alternatives() -> None:
    page = whole()
    levels = [int(tag[1]) for tag, _ in page.attributes if tag in {"h1", "h2", "h3", "h4"}]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert page.elements["main"] == page.elements["header"] == 1
    assert page.elements["caption"] == page.elements["table"] == 6
    assert all("scope" in one for tag, one in page.attributes if tag == "th")
    charts = [one for _, one in page.attributes if "data-figure" in one]
    assert all(one["role"] == "img" and one["aria-label"] for one in charts)
    assert {one["data-figure"] for one in charts} == set(figures(page))
    assert len(page.given("id")) == len(set(page.given("id")))
    assert set(page.given("aria-labelledby")) <= set(page.given("id"))


def test_buttons_name_a_block_of_code_and_are_not_there_without_scripts() -> None:
    page = whole()
    buttons = [one for tag, one in page.attributes if tag == "button"]
    assert len(buttons) == 5  # of two findings, two fixes, and the command
    assert all("hidden" in one and one["type"] == "button" for one in buttons)
    assert {one["data-copies"] for one in buttons} <= set(page.given("id"))


def test_every_figure_is_one_that_plotly_knows() -> None:
    objects = pytest.importorskip("plotly.graph_objects", reason="plotly is not installed")
    for figure in figures(whole()).values():
        text = json.dumps(figure)
        for place in range(8):
            text = text.replace(f"var(--series-{place})", f"#12345{place}")
        objects.Figure(json.loads(text.replace("var(--ink)", "#123456")))


def test_it_is_written_to_a_file_and_is_the_same_each_time(tmp_path: Path) -> None:
    survey = surveyed()
    diagnosis_page.write(tmp_path / "a.html", survey, findings(), COMMAND)
    written = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert written == diagnosis_page.render(survey, findings(), COMMAND)
    assert "Environment" not in Read(written).text
    with pytest.raises(RecordError, match=r"a.html cannot be written: No such file"):
        diagnosis_page.write(tmp_path / "no" / "a.html", survey, (), COMMAND)


def test_axes_are_logarithmic_where_values_are_far_apart_and_begin_at_0_elsewhere() -> None:
    survey = surveyed(NAMES)
    axis = figures(rendered(survey))["all-gap-0"]["layout"]["xaxis"]
    assert "type" not in axis
    assert axis["range"][0] <= 0
    records = [
        replace(one, staleness=1e6) if isinstance(one, TrainEvalGap) and one.layer == "bn" else one
        for one in surveyed(("a", "b", "bn")).records
    ]
    figure = figures(rendered(replace(survey, records=tuple(records))))["all-gap-0"]
    axis = figure["layout"]["xaxis"]
    assert axis["type"] == "log"
    assert axis["range"] == pytest.approx([3 - 0.15, 6 + 0.15])
    assert axis["tickvals"] == [1e4, 1e5, 1e6] or 1e3 in axis["tickvals"]
    assert min(figure["data"][0]["x"]) == 1e3  # at the edge, where the point tells its value
    assert float(figure["data"][0]["customdata"][0][1]) < 1
