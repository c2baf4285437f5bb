"""The script that prints pairs and memory."""

import re

import pytest

from support.scripts import command


@pytest.mark.parametrize("settings", [[], ["--compensation", "exact", "--sample", "4"]])
def test_prints_pairs_and_what_is_held(settings: list[str]) -> None:
    code, text, _ = command("pairings.py", "--models", "unet", *settings)
    assert code == 0
    assert re.search(r"merged\.4 .* merged\.3 ", text)
    said = re.search(r"history: ([\d.]+) MiB in all", text)
    held = re.search(r"held: ([\d.]+) MiB, (\d+) %", text)
    assert said is not None
    assert held is not None
    assert said[1] == held[1]
    assert int(held[2]) <= 70
