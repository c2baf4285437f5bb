import sys
from pathlib import Path

import pytest

from renorm import cli
from renorm.lab import cluster, launch


def test_ray_that_is_not_installed_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert cli.main(["compare", "--ray", "auto"]) == 2
    assert 'Run: pip install "renorm[ray]"' in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("other", ["--memory 4", "torchrun"])
def test_ray_goes_neither_with_a_bound_nor_with_torchrun(
    other: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cluster, "joined", lambda *_: pytest.fail("joined a cluster"))
    if other == "torchrun":
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", "0")
    options = other.split() if other != "torchrun" else []
    assert cli.main(["compare", "--ray", "auto", *options]) == 2
    assert "--ray goes neither with --memory nor with torchrun" in capsys.readouterr().err


def test_the_other_ranks_of_a_launch_follow_and_look_at_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    followed = []
    monkeypatch.setattr(launch, "follow", lambda: followed.append(True))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert cli.main(["compare", "--task", "no such"]) == 0
    assert followed == [True]
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("RANK", "0")
    assert cli.main(["compare", "--task", "no such"]) == 2
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert cli.main(["compare"]) == 2
    assert "Each of 3 processes takes equally many groups" in capsys.readouterr().err
    assert followed == [True]
