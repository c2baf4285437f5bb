import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from renorm.findings import Finding
from renorm.measure.records import MODEL, NOT_DENSE, FixTrial, Note, Survey
from renorm.report.diagnosis_console import show
from report.diagnosed import (
    NAMES,
    bare,
    empty_handed,
    findings,
    leak,
    long_names,
    stale,
    surveyed,
    trials,
)


def printed(
    survey: Survey,
    found: Sequence[Finding] = (),
    colour: bool = False,
    page: Path | None = None,
    width: int = 80,
) -> str:
    out = io.StringIO()
    system = "truecolor" if colour else None
    console = Console(file=out, width=width, force_terminal=colour, color_system=system)
    show(survey, found, console, page)
    return out.getvalue()


def talkative(one: Finding) -> Finding:
    return replace(one, title=f"{one.title} {'and more ' * 30}", advice="Do this first. " * 30)


def test_three_findings_fit_a_screen_without_colour() -> None:
    for names in (NAMES, long_names(160)):
        for found in (findings(names), tuple(map(talkative, findings(names)))):
            lines = printed(surveyed(names), found).splitlines()
            assert len(lines) < 24
            assert max(map(len, lines)) <= 80
            assert "\x1b" not in "".join(lines)


def test_verdict_first_then_the_findings_with_what_matters_and_what_to_do() -> None:
    text = " ".join(printed(surveyed(), findings()).split())
    parts = (
        "Normalization hurts this model: 1 error, 1 warning and 1 note.",
        "ResNet: 6 normalization layers; 40 batches, 80 examples; standard depth.",
        "1 ERROR Running statistics do not describe the data",
        "Do: Estimate the statistics anew from training batches before the model is used.",
        "2 WARNING Batches are too small",
        "Root mean square of d 0.41 (threshold 0.25) in stem.bn; 3 layers",
        "Do: Convert to batch renorm, whose limits open along the run.",
        "3 NOTE Examples of a batch see each other",
        "Influence on others 40 % (threshold 10 %) in the whole model",
        "worst layers values gap staleness noise d ratio",
        "stem.bn 32 to 128 0.766 0.613 0.46 0.4 4.07",
        "Gap of train to eval mode, in deviations: staleness of running statistics, noise of",
        "ratio: their variance over chance.",
        "Not measured, or in part: composition shift.",
        "Code to paste: with --html FILE.",
    )
    places = [text.index(part) for part in parts]
    assert places == sorted(places)


def test_a_finding_takes_two_to_four_lines() -> None:
    for one in (stale(), talkative(stale()), replace(leak(), evidence=(), layers=())):
        lines = printed(surveyed(), [one]).splitlines()
        start = next(place for place, line in enumerate(lines) if line.startswith("1 "))
        block = [lines[start]]
        for line in lines[start + 1 :]:
            if not line.startswith("  "):
                break
            block.append(line)
        assert 2 <= len(block) <= 4


def test_where_the_page_is_is_told() -> None:
    text = printed(surveyed(), findings(), page=Path("page.html"))
    assert "Code to paste, plots and all figures: page.html" in " ".join(text.split())
    assert "Plots and all figures: page.html" in printed(surveyed(), (), page=Path("page.html"))


def test_a_healthy_model_and_one_with_notes_alone_are_healthy() -> None:
    healthy = "Healthy, nothing is wrong with the normalization of this model"
    assert printed(surveyed()).startswith(f"{healthy}.")
    assert printed(surveyed(), [leak()]).startswith(f"{healthy}: 1 note.")
    assert "worst layers" not in printed(surveyed())


def test_what_is_not_complete_is_not_called_healthy() -> None:
    text = " ".join(printed(bare()).split())
    assert text.startswith("Nothing wrong was found so far, but not all that was asked for")
    assert "The measurement was interrupted" in text
    assert "Healthy" not in text


def test_a_few_batches_are_too_few_to_be_called_healthy_without_a_word() -> None:
    some = replace(surveyed(), batches=1)
    assert "1 batch cannot tell much: give 10 or more." in " ".join(printed(some).split())
    assert "cannot tell much" not in printed(replace(some, batches=10))


def test_tiles_are_not_missed_where_the_model_predicts_no_maps() -> None:
    note = Note(MODEL, "tile_consistency", NOT_DENSE)
    survey = replace(surveyed(), records=(note,))
    assert "Not measured" not in printed(survey)
    failed = replace(note, reason="The model does not run on tiles: ValueError")
    assert "tile consistency" in printed(replace(survey, records=(failed,)))


def test_figures_that_are_not_there_are_dashes() -> None:
    text = printed(empty_handed(), [stale(("bn",))])
    row = next(line.split() for line in text.splitlines() if line.startswith("bn "))
    assert row == ["bn", "1", "-", "-", "-", "-", "-"]
    assert "none is clearly better than to do without" in text


def test_trials_are_ranked_with_interval_and_cost() -> None:
    text = printed(surveyed(NAMES, *trials()), findings())
    flat = " ".join(text.split())
    assert "Of 4 fixes tried, batch renorm is first: its loss is lower by 0.583 ± 0.072" in flat
    assert "1 other helps too." in flat
    rows = (
        "batch renorm +0.583 ± 0.072 1.12 helps",
        "calibrate +0.300 ± 0.000 no training helps",
        "as it is +0.000 ± 0.000 1.00",
        "longer EMA -0.10 ± 2.54 1.00 diverged with 1 of 3 seeds",
        "cross-iteration - - not tried: The model is compiled.",
    )
    places = [flat.index(row) for row in rows]
    assert places == sorted(places)


def test_a_gain_that_is_nothing_to_speak_of_is_no_help() -> None:
    def calibrated(gain: float) -> str:
        losses, gains = (1.0 - gain,) * 3, (gain,) * 3
        one = FixTrial(MODEL, "calibrate", "", 0, (0, 1, 2), losses, gains, None, "")
        return " ".join(printed(surveyed(NAMES, one)).split())

    assert "calibrate +0.00021 ± 0.00000 no training " in calibrated(0.00021)
    assert "none is clearly better" in calibrated(0.00021)
    assert "none is clearly better" in calibrated(0.09)
    assert "calibrate is first" in calibrated(0.2)


def test_markup_in_names_is_shown_as_text() -> None:
    name = "[red]bn[/red]"
    one = replace(stale((name,)), title="[bold]no[/bold]", advice="[/] do")
    text = printed(surveyed((name,)), [one], colour=True)
    for part in (name, "[bold]no[/bold]", "[/] do"):
        assert part in text
    assert "\x1b" in text


def test_a_narrow_terminal_loses_no_finding() -> None:
    text = printed(surveyed(), findings(), width=40)
    assert max(map(len, text.splitlines())) <= 40
    assert all(f"{place} {one.severity.upper()}" in text for place, one in enumerate(findings(), 1))
