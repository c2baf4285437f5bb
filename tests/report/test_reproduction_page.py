from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from renorm.report import reproduction, reproduction_page
from renorm.report.claims import Claim, contrast, judge, more_than
from renorm.report.records import Record, Specification
from renorm.report.reproduction import Reproduction
from report.browsing import needs_browser, outside, requested, show

RUN = Specification("digits", "mlp", "batch_norm", "microbatch", 0, 100, 0.1, 32, 4)
HOSTILE = "<img src=x onerror=alert(1)>"


def reproduced(text: str = "Ours is better") -> Reproduction:
    wanted = {
        "groups of 4, theirs": RUN,
        "groups of 4, ours": replace(RUN, normalizer="group_norm(groups=2)"),
        "measured": replace(RUN, condition="iid"),
        "missing": replace(RUN, steps=7),
    }
    runs: dict[str, dict[int, Record]] = {name: {} for name in wanted}
    for place, name in enumerate(list(wanted)[:3]):
        for seed in (0, 1):
            score = 0.5 + place / 5 + seed / 100
            curve = ((50, score / 2), (100, score)) if place < 2 else ()
            figures = (("drift", 0.1 + seed),) if place == 2 else ()
            one = replace(wanted[name], seed=seed)
            runs[name][seed] = Record(one, score=score, curve=curve, figures=figures)
    evidence = contrast({"groups of 4, ours": 1, "groups of 4, theirs": -1})
    claims = (
        Claim(text, evidence, more_than(5), paper="4 points", note="A note that is long enough."),
        Claim("Nothing is known", contrast({"missing": 1}), more_than()),
    )
    records = tuple(record for found in runs.values() for record in found.values())
    return Reproduction(
        "paper",
        "A paper",
        "Someone 2000",
        "What is run.",
        "laptop",
        2,
        judge(claims, runs),
        reproduction.arms(wanted, 2, runs),
        records,
        "renorm reproduce paper",
    )


def test_the_page_has_verdicts_arms_figures_and_curves() -> None:
    found = reproduced()
    text = reproduction_page.render(found)
    for part in (
        "Of 2 claims: 1 reproduced and 1 not run.",
        "20.0 ± 0.0 points",
        "4 points",
        "0/2 <small>(2 missing)</small>",
        "1 figure, arm by arm",
        "0.6 ± 6.4",
        "<figcaption>groups of 4</figcaption>",
        "accuracy, % in groups of 4 at the end of the training: batch norm 50.5 ± 6.4",
    ):
        assert part in text
    assert not found.complete
    assert text == reproduction_page.render(found)


def test_what_a_claim_says_is_text() -> None:
    text = reproduction_page.render(reproduced(HOSTILE))
    assert HOSTILE not in text
    assert "&lt;img src=x" in text


@needs_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_asked_for_or_lies_outside(tmp_path: Path, browser: Any, width: int) -> None:
    path = tmp_path / "page.html"
    reproduction_page.write(path, reproduced())
    browser.get_log("browser")
    browser.get_log("performance")
    assert show(browser, path.as_uri(), width) == 1
    assert outside(browser, width) == []
    assert requested(browser) == {path.as_uri()}
    assert browser.get_log("browser") == []
    shown = browser.execute_script(
        "const box = document.querySelector('td.verdict').getBoundingClientRect();"
        "return box.right <= innerWidth && box.width > 0"
    )
    assert shown  # without scrolling
