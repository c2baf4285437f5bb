"""Where a figure comes from: versions, platform, commit."""

import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import renorm

OPTIONAL = (
    "scikit-learn",
    "scipy",
    "cyclopts",
    "rich",
    "triton",
    "torchvision",
    "timm",
    "gymnasium",
    "sb3-contrib",
)


def installed(package: str) -> str | None:
    """The version of an installed distribution, or None.

    >>> installed("no-such-distribution") is None
    True
    """
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache
def describe() -> dict[str, str | None]:
    """What every record says about its origin."""
    return {
        "renorm": renorm.__version__,
        "commit": commit(Path(renorm.__file__)),
        "python": platform.python_version(),
        "torch": installed("torch"),
        "numpy": installed("numpy"),
        "scikit-learn": installed("scikit-learn"),
        "platform": f"{platform.system()} {platform.machine()}",
    }


def commit(file: Path) -> str | None:
    """The git commit that ``file`` belongs to, with ``-dirty`` if the tree has changes.

    None if git is not there, or does not track the file (an installed package that happens to
    lie in somebody else's repository).
    """
    try:
        _git(file, "ls-files", "--error-unmatch", file.name)
        return _git(file, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(file: Path, *arguments: str) -> str:
    command = ["git", "-C", str(file.parent), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
