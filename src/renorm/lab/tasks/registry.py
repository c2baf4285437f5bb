"""Tasks by name: those of the package, and a user's own."""

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from renorm.errors import ArgumentError
from renorm.lab import data
from renorm.lab.models import MODELS
from renorm.lab.names import known
from renorm.lab.tasks.base import Task
from renorm.lab.tasks.classification import Classification
from renorm.lab.tasks.control import Control


@dataclass(frozen=True)
class Entry:
    """A task of the package.

    Args:
        name: as it is given on the command line and stored in records.
        about: one line for the help.
        models: names of the nets it can train; the first is the default.
        build: (name of the net, folder of the data sets or None) -> task.
    """

    name: str
    about: str
    models: tuple[str, ...]
    build: Callable[[str, Path | None], Task]


@dataclass(frozen=True)
class Reference:
    """A task as a run names it.

    Args:
        name: of an entry, or ``file.py:Name`` or ``module:Name``.
        model: of the net; empty for a user's own task.
        source: fingerprint of a user's own file, see ``Specification``.
    """

    name: str
    model: str
    source: str = ""


TASKS = {
    entry.name: entry
    for entry in (
        Entry(
            "digits",
            "scikit-learn's digits, 1,797 images of 8 x 8; nothing to download",
            tuple(MODELS),
            lambda model, folder: Classification(data.digits, model),
        ),
        Entry(
            "pendulum",
            "gymnasium's Pendulum-v1 by CrossQ; 10,000 steps take minutes; needs renorm[rl]",
            ("crossq",),
            lambda model, folder: Control(),
        ),
    )
}


def find(name: str, model: str | None = None) -> Reference:
    """The task that a user means, and its net.

    Raises:
        ArgumentError: there is no such task, net or file, or it holds no task of that name.
    """
    if ":" in name:
        if model is not None:
            raise ArgumentError(
                f"A task of your own builds its model itself, got the model {model!r} for {name}. "
                "Leave the model out."
            )
        _factory(name)
        return Reference(name, "", _fingerprint(name))
    (name,) = known("task", [name], TASKS)
    models = {one: one for one in TASKS[name].models}
    (model,) = known("model", [model or TASKS[name].models[0]], models)
    return Reference(name, model)


@cache
def load(name: str, model: str, folder: Path | None) -> Task:
    """The task itself; made once in a process, so that data are read once.

    Args:
        name, model: as ``find`` gave them.
        folder: of the data sets; None for the default of each.

    Raises:
        ArgumentError: as ``find``, or the factory returns no Task.
    """
    if ":" not in name:
        return TASKS[name].build(model, folder)
    task = _factory(name)()
    if not isinstance(task, Task):
        raise ArgumentError(
            f"{name} must return a renorm.lab.tasks.Task, got {type(task).__name__}. Subclass "
            "renorm.lab.tasks.Supervised; renorm compare --init writes an example."
        )
    return task


def _factory(name: str) -> Callable[[], Any]:
    place, _, attribute = name.rpartition(":")
    module = _module(place)
    factory = getattr(module, attribute, None)
    if not callable(factory):
        there = [key for key, value in vars(module).items() if _is_task(value)]
        raise ArgumentError(
            f"{place} has no task {attribute!r}. It has {', '.join(there) or 'none'}: give the "
            "name of a class or a function after the colon."
        )
    return factory


def _is_task(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Task) and not value.__abstractmethods__


@cache
def _module(place: str) -> ModuleType:
    """The module at a path that ends in .py, or of a dotted name.

    An error in the user's code is left as it is: its traceback says where it comes from.
    """
    if not place.endswith(".py"):
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{place}.".startswith(f"{error.name}."):
                raise
            raise ArgumentError(
                f"There is no module {place!r} to take a task from. Give a file, as in "
                "my_task.py:MyTask, or a module that can be imported here."
            ) from error
    path = Path(place).resolve()
    if not path.is_file():
        raise ArgumentError(
            f"There is no file {place} to take a task from. renorm compare --init writes an example."
        )
    name = f"renorm_user_task_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pickle and dataclasses look their module up here
    spec.loader.exec_module(module)
    return module


def _fingerprint(name: str) -> str:
    file = _module(name.rpartition(":")[0]).__file__
    return "" if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]
