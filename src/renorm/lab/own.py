"""Code of a user's own, named on the command line by its file or module."""

import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from renorm.errors import ArgumentError, RenormError


class Kind(NamedTuple):
    """What is looked for in the code, for messages.

    Args:
        name: as in "a task".
        example: how one is named.
        template: where there is an example, as the end of a sentence.
    """

    name: str
    example: str
    template: str


@cache
def module_at(place: str, kind: Kind) -> ModuleType:
    """The module at a path that ends in .py, or of a dotted name.

    It may import what lies beside the file, or in the working directory, whether renorm was started
    by its script or by ``python -m``.

    Raises:
        ArgumentError: there is none, or it raises an error.
    """
    if not place.endswith(".py"):
        _let_import_from(Path.cwd())
        with shown(f"The {kind.name} {place}"):
            try:
                return importlib.import_module(place)
            except ModuleNotFoundError as error:
                if f"{place}.".startswith(f"{error.name}."):  # not one that it imports
                    raise ArgumentError(_no_module(place, kind)) from error
                raise
    path = Path(place).resolve()
    if not path.is_file():
        raise ArgumentError(
            f"There is no file {place} to take a {kind.name} from. Give the path of one, as in "
            f"{kind.example}; {kind.template}."
        )
    name = f"renorm_user_{kind.name}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    _let_import_from(path.parent)
    sys.modules[name] = module  # pickle and dataclasses look their module up here
    with shown(f"The {kind.name} {place}"):
        spec.loader.exec_module(module)
    return module


def _no_module(place: str, kind: Kind) -> str:
    return (
        f"There is no module {place} to take a {kind.name} from. Give a file, as in "
        f"{kind.example}, or a module that can be imported from here; {kind.template}."
    )


def _let_import_from(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # last, so that a file there hides no library


@contextmanager
def shown(subject: str) -> Iterator[None]:
    """Show an error in a user's code as theirs, traceback and all, and not as one of this package.

    Args:
        subject: of the sentence that says so.

    Raises:
        ArgumentError: instead of any error but this package's own, sys.exit() included.
    """
    try:
        yield
    except RenormError:
        raise
    except (Exception, SystemExit) as error:  # a script that ends itself when it is imported
        raise ArgumentError(
            f"{subject} raised an error. Mend it, and run the same command again.\n"
            f"{traceback.format_exc().rstrip()}"
        ) from error
