"""The Python in README and docs runs."""

import re
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

import renorm

ROOT = Path(__file__).parents[2]


def _code(block: str) -> str:
    """What is between the fences, of a block in a list item too."""
    return textwrap.dedent(block).partition("\n")[2].removesuffix("```")


PYTHON = re.compile(r"^ *```python\n.*?```", re.DOTALL | re.MULTILINE)
DOCS = ("howto", "semantics", "distributed", "cross_iteration", "lab", "doctor")
PAGES = ("README.md", *(f"docs/{name}.md" for name in DOCS))
SNIPPETS = [
    pytest.param(_code(block), id=f"{path.name}-{i}")
    for path in map(ROOT.joinpath, PAGES)
    for i, block in enumerate(PYTHON.findall(path.read_text()))
]


def _names() -> dict:
    """What a reader has at hand where a snippet begins."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    converted = renorm.convert(nn.Sequential(nn.BatchNorm2d(3)))
    return {
        "renorm": renorm,
        "model": model,
        "checkpoint": model.state_dict(),
        "total_steps": 1_000,
        "batches": [torch.randn(4, 3, 6, 6) for _ in range(2)],
        "layer": converted[0],
        "x": torch.randn(2, 3, 5, 5),
        "mask": torch.rand(2, 5, 5) < 0.8,
    }


@pytest.mark.parametrize("code", SNIPPETS)
def test_snippet_runs(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    names = _names()
    if any(f"{name}(" in code for name in ("freeze", "to_batchnorm", "accumulate")):
        renorm.convert(names["model"])
    if code.startswith("import"):
        names = {}  # a snippet with imports is complete
    exec(compile(code, "snippet", "exec"), names)
    capsys.readouterr()


def test_there_are_snippets() -> None:
    assert len(SNIPPETS) >= 6
