"""Files of a data set: where they are looked for, whether they are whole, how they are fetched."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from renorm.errors import DataError, MissingExtraError

VARIABLE = "RENORM_DATA"
DEFAULT = "data"


def root(folder: Path | None) -> Path:
    """The folder of all data sets: the given one, else that of RENORM_DATA, else ``data``."""
    return Path(os.environ.get(VARIABLE) or DEFAULT) if folder is None else folder


def located(title: str, folder: Path, places: Sequence[str], names: Sequence[str]) -> Path:
    """The first file that is there, of all names in the first place, then in the second ...

    Args:
        title: of the data set, for the message.
        folder: of all data sets.
        places: folders inside it.
        names: under which the file goes, the usual one first.

    Raises:
        DataError: there is none.
    """
    for place in places:
        for name in names:
            if (folder / place / name).is_file():
                return folder / place / name
    looked = " or ".join(str(folder / place) for place in places)
    raise DataError(
        f"{title} is not complete: there is no {names[0]} in {looked}. Give the folder that has "
        f"{places[0]} in it by --data-dir or in the environment variable {VARIABLE} ("
        f"without either it is {DEFAULT!r} where you are). renorm compare --download fetches some."
    )


def content(path: Path) -> bytes:
    """What is in a file.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Give another folder.") from error


def checked(path: Path, expected: str) -> bytes:
    """What is in a file whose md5, 32 hexadecimal digits, is known.

    Raises:
        DataError: it cannot be read, or has another md5.
    """
    held = content(path)
    if md5(held) != expected:
        raise damaged(path, md5(held), expected)
    return held


def md5(held: bytes) -> str:
    """The md5 of bytes: it tells a damaged file, not a forged one."""
    return hashlib.md5(held, usedforsecurity=False).hexdigest()


def damaged(path: Path, found: str, expected: str) -> DataError:
    """The error about a file that is not what it should be."""
    return DataError(
        f"{path} is damaged or another version: its md5 is {found}, expected {expected}. Delete it "
        "and fetch it again."
    )


def torchvision_download(title: str, name: str, folder: Path) -> None:
    """Let torchvision fetch a data set of its own into ``folder``.

    Args:
        title: of the data set, for the message.
        name: of the class in ``torchvision.datasets``.
        folder: of all data sets.

    Raises:
        MissingExtraError: torchvision is not installed.
        DataError: the download failed.
    """
    try:
        from torchvision import datasets
    except ImportError as error:
        raise MissingExtraError(
            f"{title} is downloaded by torchvision, which is not installed. "
            'Run: pip install "renorm[data]"'
        ) from error
    try:
        getattr(datasets, name)(folder, download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"torchvision could not download {title} into {folder}: {str(error).strip()}. Fetch "
            "the files on a machine that has a connection, and give their folder by --data-dir."
        ) from error
