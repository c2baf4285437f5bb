"""Pages in a real browser, where one is installed."""

import json
import shutil
from collections.abc import Callable
from typing import Any

import pytest

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
DRAWN = "return document.querySelectorAll('.chart[data-drawn]').length"

needs_browser = pytest.mark.skipif(
    BROWSER is None or DRIVER is None, reason="chromium and chromedriver are not installed"
)


def show(browser: Any, address: str, width: int = 1280, scheme: str = "light") -> int:
    """Open the page, wait until all charts are drawn, and return how many these are."""
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    prefer(browser, scheme)
    browser.get(address)
    count = browser.execute_script("return document.querySelectorAll('.chart').length")
    until(browser, lambda: browser.execute_script(DRAWN) == count)
    return count


def until(browser: Any, condition: Callable[[], bool]) -> None:
    """Wait for something that the browser does in its own time; a minute is a failure."""
    from selenium.webdriver.support.wait import WebDriverWait

    WebDriverWait(browser, 60, poll_frequency=0.05).until(lambda _: condition())


def prefer(browser: Any, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def requested(browser: Any) -> set[str]:
    """Addresses that were asked for since the last call, without those that hold their data."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    found = {
        one["params"]["request"]["url"]
        for one in messages
        if one["method"] == "Network.requestWillBeSent"
    }
    return {address for address in found if not address.startswith("data:")}


def outside(browser: Any, width: int) -> list[str]:
    """What of a page of that width is beyond its edge, and not in a box that scrolls."""
    if browser.execute_script("return document.documentElement.scrollWidth") > width:
        return ["the page"]
    script = f"""
        return [...document.querySelectorAll('main *')].filter(one => {{
          const box = one.getBoundingClientRect();
          return box.right > {width + 1} && !one.closest('.scroll, pre');
        }}).map(one => one.outerHTML.slice(0, 80));
    """
    return browser.execute_script(script)
