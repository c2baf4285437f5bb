import subprocess
from pathlib import Path

import pytest

import renorm
from renorm.environment import commit, describe, installed


def test_every_record_names_versions_and_platform() -> None:
    facts = describe()
    assert facts["renorm"] == renorm.__version__
    for name in ("python", "torch", "numpy", "scikit-learn", "platform"):
        assert facts[name], name


def test_what_is_not_installed_has_no_version() -> None:
    assert installed("no-such-distribution") is None
    assert installed("torch")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    def git(*arguments: str) -> None:
        subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments],
            cwd=tmp_path,
            check=True,
            capture_output=True,
        )

    (tmp_path / "code.py").write_text("1")
    git("init")
    git("add", "code.py")
    git("commit", "-m", "one")
    git("tag", "-a", "v1", "-m", "v1")
    return tmp_path


def test_a_commit_is_named_and_changes_are_marked(repository: Path) -> None:
    clean = commit(repository / "code.py")
    assert clean is not None
    assert len(clean) == 40
    (repository / "code.py").write_text("2")
    assert commit(repository / "code.py") == f"{clean}-dirty"


def test_a_file_git_does_not_track_has_no_commit(repository: Path) -> None:
    (repository / "other.py").write_text("")
    assert commit(repository / "other.py") is None


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def absent(*_: object, **__: object) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr("subprocess.run", absent)
    assert commit(tmp_path / "code.py") is None
