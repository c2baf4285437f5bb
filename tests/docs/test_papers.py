import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from renorm.lab.papers import STUDIES

ROOT = Path(__file__).parents[2]


@pytest.fixture
def papers() -> ModuleType:
    specification = importlib.util.spec_from_file_location("papers", ROOT / "scripts/papers.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_tables_are_those_of_the_runs_that_are_kept(papers: ModuleType) -> None:
    _, mark, shown = papers.PAGE.read_text().partition(papers.MARK)
    assert mark
    assert shown == f"\n{papers.tables()}"


def test_kept_runs_are_of_studies() -> None:
    kept = {path.stem.removesuffix("-laptop") for path in (ROOT / "results").glob("*.jsonl")}
    assert kept
    assert kept <= STUDIES.keys()
