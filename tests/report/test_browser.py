"""The page in a real browser, where one is installed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from renorm.report import page
from renorm.report.comparison import compare
from renorm.report.records import Record
from report.browsing import needs_browser, outside, prefer, requested, show, until
from report.constructed import PLAIN, diverged, failed
from report.whole import HOSTILE, grid, tried, whole

PAINTED = "return performance.getEntriesByName('first-contentful-paint').length > 0"

pytestmark = needs_browser


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page of 200 runs with everything a page can have."""
    records: list[Record] = grid(23)[:200]
    records[3] = failed(records[3].specification)
    records[7] = diverged(records[7].specification)
    records.append(tried(PLAIN, 0.1, 0.5))
    return _written(tmp_path_factory.mktemp("page") / "page.html", records)


def _written(path: Path, records: list[Record]) -> str:
    wanted = [one.specification for one in records if one.specification.split == "test"]
    page.write(path, compare(wanted, records), records, {"iid": "at random"}, "renorm report .")
    assert path.stat().st_size < 6_000_000
    return path.as_uri()


def colours(browser: Any) -> dict[str, str]:
    """Of the page, its text, the first line and the first axis label of the curves."""
    return browser.execute_script(
        """
        const of = (query, name) => getComputedStyle(document.querySelector(query))[name];
        return {
          paper: of("body", "backgroundColor"), ink: of("body", "color"),
          line: of("[data-figure=curves-0] .scatterlayer .js-line[style*='stroke-width: 2px']",
            "stroke"),
          label: of("[data-figure=curves-0] .xtick text", "fill"),
        };
        """
    )


def test_no_error_no_request_and_all_charts_drawn(browser: Any, address: str) -> None:
    browser.get_log("browser")
    browser.get_log("performance")
    assert show(browser, address) == 12
    assert browser.execute_script(PAINTED)
    lines = "return document.querySelectorAll('.chart .scatterlayer .trace').length"
    assert browser.execute_script(lines) > 12
    assert browser.get_log("browser") == []
    assert requested(browser) == {address}


def test_a_narrow_screen_scrolls_tables_but_not_the_page(browser: Any, address: str) -> None:
    show(browser, address, width=390)
    browser.execute_script("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert outside(browser, 390) == []
    scrolled = """
        const one = document.querySelector('.scroll');
        return one.scrollWidth > one.clientWidth;
    """
    assert browser.execute_script(scrolled)


def test_light_and_dark_differ_in_page_and_charts_and_change_live(
    browser: Any, address: str
) -> None:
    show(browser, address, scheme="light")
    light = colours(browser)
    assert light["paper"] == "rgb(255, 255, 255)"
    prefer(browser, "dark")
    until(browser, lambda: colours(browser)["label"] == colours(browser)["ink"] != light["ink"])
    dark = colours(browser)
    assert all(dark[name] != light[name] for name in light)
    prefer(browser, "light")
    until(browser, lambda: colours(browser) == light)


def test_paper_is_light_and_nothing_is_folded_away(browser: Any, address: str) -> None:
    show(browser, address, scheme="light")
    light = colours(browser)
    prefer(browser, "dark")
    folded = "return document.querySelectorAll('details:not([open])').length"
    before = browser.execute_script(folded)
    assert before > 0
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert browser.execute_script(folded) == 0
    assert colours(browser) == light
    browser.execute_script("dispatchEvent(new Event('afterprint'))")
    assert browser.execute_script(folded) == before


def test_hostile_names_run_nothing_and_are_shown_as_text(browser: Any, tmp_path: Path) -> None:
    names = {"task": HOSTILE, "normalizer": HOSTILE, "condition": HOSTILE}
    records = [replace(whole(replace(PLAIN, **names), 0.5), metric=HOSTILE)]
    browser.get_log("browser")
    assert show(browser, _written(tmp_path / "page.html", records)) == 2
    assert browser.execute_script("return document.images.length") == 0
    label = browser.execute_script("return document.querySelector('.ytick text').textContent")
    assert label == HOSTILE.replace("_", " ")
    assert browser.get_log("browser") == []
