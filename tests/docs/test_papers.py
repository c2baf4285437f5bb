import shutil
from pathlib import Path

import pytest

from renorm import cli
from renorm.lab.papers import STUDIES

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "papers.md"
KEPT = sorted((ROOT / "results").glob("*-laptop.jsonl"))


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_the_tables_are_those_of_the_runs_that_are_kept(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out = Path("results") / path.name
    out.parent.mkdir()
    shutil.copy(path, out)
    name = path.stem.removesuffix("-laptop")
    asked = ["reproduce", name, "--scale", "laptop", "--out", str(out), "--again"]
    cli.main([*asked, "--markdown", "tables.md"])
    assert Path("tables.md").read_text() in PAGE.read_text()


def test_kept_runs_are_of_studies() -> None:
    assert {path.stem.removesuffix("-laptop") for path in KEPT} <= STUDIES.keys()
