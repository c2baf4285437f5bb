"""The page of a diagnosis in a real browser, where one is installed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from renorm.measure.records import LayerFacts, TrainEvalGap
from renorm.report import diagnosis_page
from report.browsing import needs_browser, outside, prefer, requested, show, until
from report.diagnosed import bare, findings, long_names, surveyed, trials

CODE = "import renorm\n\nrenorm.calibrate(model, batches)"
UNFOLD = "document.querySelectorAll('details').forEach(one => one.open = true)"

pytestmark = needs_browser


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page of 160 layers with all that a page can have."""
    names = long_names(160)
    path = tmp_path_factory.mktemp("diagnosis") / "page.html"
    survey = surveyed(names, *trials(), renorm=True)
    diagnosis_page.write(path, survey, findings(names), "renorm doctor net:make")
    assert path.stat().st_size < 6_000_000
    return path.as_uri()


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page with a finding and code, and nothing to draw."""
    path = tmp_path_factory.mktemp("diagnosis") / "short.html"
    diagnosis_page.write(path, bare(), findings(), "renorm doctor net:make")
    return path.as_uri()


def colours(browser: Any) -> dict[str, str]:
    """Of the page, its text, a severity, a point and an axis label of the gaps."""
    return browser.execute_script(
        """
        const of = (query, name) => getComputedStyle(document.querySelector(query))[name];
        return {
          paper: of("body", "backgroundColor"), ink: of("body", "color"),
          severity: of(".severity.error", "color"),
          point: of("[data-figure=all-gap-0] .point", "fill"),
          label: of("[data-figure=all-gap-0] .xtick text", "fill"),
        };
        """
    )


def test_all_charts_and_tables_are_there_without_an_error_or_a_request(
    browser: Any, address: str
) -> None:
    browser.get_log("browser")
    browser.get_log("performance")
    assert show(browser, address) > 15
    empty = """
        return [...document.querySelectorAll('.chart')].filter(
          one => !one.querySelector('.point, .hm image, .js-line')
        ).map(one => one.dataset.figure);
    """
    assert browser.execute_script(empty) == []
    assert browser.execute_script("return document.querySelectorAll('#facts').length") == 1
    rows = "return document.querySelector('#facts').closest('table').tBodies[0].rows.length"
    assert browser.execute_script(rows) == 160
    assert browser.get_log("browser") == []
    assert requested(browser) == {address}


def test_on_a_phone_tables_scroll_and_the_page_does_not(browser: Any, address: str) -> None:
    show(browser, address, width=390)
    browser.execute_script(UNFOLD)
    assert outside(browser, 390) == []
    small = """
        return [...document.querySelectorAll('.chart')].filter(
          one => one._fullLayout._size.w < 150
        ).map(one => one.dataset.figure);
    """
    assert browser.execute_script(small) == []


def test_light_and_dark_differ_and_change_live(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    survey = surveyed()
    gaps = replace(survey, records=(*survey.of(LayerFacts), *survey.of(TrainEvalGap)))
    diagnosis_page.write(path, gaps, findings(), "")
    assert show(browser, path.as_uri(), scheme="light") == 2
    light = colours(browser)
    prefer(browser, "dark")
    until(browser, lambda: colours(browser)["label"] == colours(browser)["ink"] != light["ink"])
    assert all(colours(browser)[name] != light[name] for name in light)
    prefer(browser, "light")
    until(browser, lambda: colours(browser) == light)


def test_the_keyboard_copies_code_and_it_is_told(browser: Any, short: str) -> None:
    from selenium.webdriver.common.keys import Keys

    show(browser, short)
    button = browser.find_element("css selector", "[data-copies=code-1]")
    assert button.is_displayed()
    focus = (
        "arguments[0].focus({focusVisible: true}); return document.activeElement === arguments[0]"
    )
    assert browser.execute_script(focus, button)
    button.send_keys(Keys.ENTER)
    status = "return document.getElementById('copied').textContent"
    until(browser, lambda: browser.execute_script(status) == "The code is copied.")
    browser.execute_script(
        """
        const field = document.createElement('textarea');
        document.body.append(field);
        field.focus();
        """
    )
    browser.switch_to.active_element.send_keys(Keys.CONTROL, "v")
    pasted = "return document.querySelector('body > textarea').value"
    until(browser, lambda: browser.execute_script(pasted) == CODE)


def test_without_a_clipboard_code_is_selected_to_be_copied_by_hand(
    browser: Any, short: str
) -> None:
    show(browser, short)
    browser.execute_script(
        "Object.defineProperty(navigator, 'clipboard', {value: undefined, configurable: true});"
        "document.execCommand = () => false;"
    )
    browser.find_element("css selector", "[data-copies=code-1]").click()
    status = "return document.getElementById('copied').textContent"
    told = "The code is selected; copy it by hand."
    until(browser, lambda: browser.execute_script(status) == told)
    assert browser.execute_script("return String(getSelection())").split() == CODE.split()


def test_a_survey_without_figures_is_a_page_without_charts(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    diagnosis_page.write(path, bare(), (), "")
    browser.get_log("browser")
    assert show(browser, path.as_uri(), width=390) == 0
    assert outside(browser, 390) == []
    assert browser.get_log("browser") == []
