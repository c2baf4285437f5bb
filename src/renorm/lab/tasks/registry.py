"""Tasks by name: those of the package, and a user's own."""

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from renorm.errors import ArgumentError
from renorm.lab import data, models
from renorm.lab.isolation import isolated
from renorm.lab.own import Kind, module_at, shown
from renorm.lab.tasks.base import Task
from renorm.lab.tasks.binary import SIGMOIDS, BinaryDigits
from renorm.lab.tasks.cells import CellDetection
from renorm.lab.tasks.classification import (
    Characters,
    Cifar10,
    Digits,
    MirroredCifar10,
    Mnist,
    Table,
)
from renorm.lab.tasks.control import Control
from renorm.lab.tasks.embedding import MetricLearning
from renorm.lab.tasks.propagating import Propagating
from renorm.lab.tasks.smoothness import DeepLinear, Smoothness
from renorm.names import known

_KIND = Kind("task", "my_task.py:MyTask", "renorm compare --init writes an example")


@dataclass(frozen=True)
class Entry:
    """A task of the package.

    Args:
        name: as it is given on the command line and stored in records.
        about: one line for the help.
        models: names of the nets it can train; the first is the default.
        build: (name of the net, folder of the data sets or None) -> task.
        fetch: downloads the data set into a folder; None where there is nothing to download.
    """

    name: str
    about: str
    models: tuple[str, ...]
    build: Callable[[str, Path | None], Task]
    fetch: Callable[[Path | None], object] | None = None


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


CLASSIFIERS = (
    "convnet", "mlp", "vgg", "resnet20", "resnet8", "resnet14", "resnet18", "plain", "residual"
)  # fmt: skip
TASKS = {
    entry.name: entry
    for entry in (
        Entry(
            "digits",
            "scikit-learn's digits, 1,797 images of 8 x 8; nothing to download",
            CLASSIFIERS,
            lambda model, folder: Digits(data.digits, model),
        ),
        Entry(
            "binary_digits",
            "the same digits in black and white, as the batch norm paper has MNIST",
            tuple(SIGMOIDS),
            lambda model, folder: BinaryDigits(data.digits, model),
        ),
        Entry(
            "tabular",
            "scikit-learn's breast cancer table, 569 rows of 30 figures; nothing to download",
            ("mlp",),
            lambda model, folder: Table(data.breast_cancer, model),
        ),
        Entry(
            "mnist",
            "MNIST, 60,000 digits of 28 x 28, judged by 5,000 of the test images",
            CLASSIFIERS,
            lambda model, folder: Mnist(partial(data.mnist, folder), model),
            partial(data.mnist, download=True),
        ),
        Entry(
            "binary_mnist",
            "MNIST in black and white, as the batch norm paper has it, judged by 5,000 images",
            tuple(SIGMOIDS),
            lambda model, folder: BinaryDigits(partial(data.mnist, folder), model),
            partial(data.mnist, download=True),
        ),
        Entry(
            "fashion_mnist",
            "Fashion-MNIST, 60,000 articles of clothing, judged by 5,000 of the test images",
            CLASSIFIERS,
            lambda model, folder: Mnist(partial(data.fashion_mnist, folder), model),
            partial(data.fashion_mnist, download=True),
        ),
        Entry(
            "cifar10",
            "CIFAR-10, 50,000 photographs of 32 x 32, judged by 1,000 of the test images",
            ("resnet20", "convnet", "mlp", "vgg", "resnet14", "resnet18", "plain", "residual"),
            lambda model, folder: Cifar10(partial(data.cifar10, folder), model),
            partial(data.cifar10, download=True),
        ),
        Entry(
            "mirrored_cifar10",
            "20,000 images of CIFAR-10 and their mirror images, judged by 2,000 of the test images",
            ("resnet14", "resnet20", "convnet", "vgg", "resnet18"),
            lambda model, folder: MirroredCifar10(partial(data.cifar10, folder), model),
            partial(data.cifar10, download=True),
        ),
        Entry(
            "omniglot",
            "metric learning: handwritten characters, tested on some never seen",
            ("vgg", "convnet", "resnet20", "resnet14", "resnet18"),
            lambda model, folder: MetricLearning(partial(data.omniglot, folder), model),
        ),
        Entry(
            "characters",
            "Omniglot's 242 characters, 15 drawings of each to train on and 5 to be judged by",
            CLASSIFIERS,
            lambda model, folder: Characters(partial(data.omniglot, folder), model),
        ),
        Entry(
            "cells",
            "dense prediction: blood cells are found in photographs, few images in a batch",
            ("unet",),
            lambda model, folder: CellDetection(partial(data.bccd, folder), model),
        ),
        Entry(
            "gaussian_vectors",
            "fresh nets, measured by examples of 1,024 Gaussian numbers; nothing is trained",
            ("plain", "residual"),
            lambda model, folder: Propagating((1024,), model),
        ),
        Entry(
            "gaussian_images",
            "fresh nets, measured by Gaussian images of 16 x 16; nothing is trained",
            ("plain", "residual"),
            lambda model, folder: Propagating((1, 16, 16), model),
        ),
        Entry(
            "smooth_digits",
            "the loss landscape of scikit-learn's digits along a training, in figures of each run",
            ("convnet", "vgg"),
            lambda model, folder: Smoothness(data.digits, model),
        ),
        Entry(
            "smooth_cifar10",
            "the loss landscape of CIFAR-10 along a training, in figures of each run",
            ("vgg_a", "vgg"),
            lambda model, folder: Smoothness(partial(data.cifar10, folder), model, judged=1000),
            partial(data.cifar10, download=True),
        ),
        Entry(
            "smooth_linear",
            "the loss landscape of 25 linear layers on Gaussian data; nothing to download",
            ("linear",),
            lambda model, folder: DeepLinear(),
        ),
        Entry(
            "pendulum",
            "gymnasium's Pendulum-v1 by CrossQ; 10,000 steps take minutes; needs renorm[rl]",
            ("crossq",),
            lambda model, folder: Control(),
        ),
    )
}


def fetch(name: str, folder: Path | None) -> None:
    """Download the data set of a task, where it is not there already.

    Raises:
        ArgumentError: there is no such task, or nothing to download for it.
        DataError: it could not be downloaded, or is damaged.
    """
    found = find(name).name
    fetcher = TASKS[found].fetch if found in TASKS else None
    if fetcher is None:
        able = [one.name for one in TASKS.values() if one.fetch is not None]
        raise ArgumentError(
            f"There is nothing that can be downloaded for the task {found}; there is for "
            f"{', '.join(able)}. Leave the download out."
        )
    fetcher(folder)


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
    if name.endswith(".py"):
        raise ArgumentError(
            f"A task of your own is named by its file and its class, got {name!r} alone. Give "
            f"{name}:MyTask, with the name of yours."
        )
    (name,) = known("task", [name], TASKS)
    nets = TASKS[name].models
    return Reference(name, models.named(model or nets[0], nets))


@cache
def load(name: str, model: str, folder: Path | None) -> Task:
    """The task itself; made once in a process, so that data are read once.

    Args:
        name: as ``find`` gave it.
        model: as ``find`` gave it.
        folder: of the data sets; None for the default.

    Raises:
        ArgumentError: as ``find``, or the factory returns no Task.
    """
    if ":" not in name:
        return TASKS[name].build(model, folder)
    factory = _factory(name)
    with users_code(name), isolated(0):  # what it draws is the same in every process
        task = factory()
    if not isinstance(task, Task):
        raise ArgumentError(
            f"{name} must return a renorm.lab.tasks.Task, got {type(task).__name__}. Subclass "
            "renorm.lab.tasks.Supervised; renorm compare --init writes an example."
        )
    return task


def _factory(name: str) -> Callable[[], Any]:
    place, _, attribute = name.rpartition(":")
    module = module_at(place, _KIND)
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


def users_code(name: str) -> AbstractContextManager[None]:
    """Show an error in the code of a task as its user's; see ``renorm.lab.own.shown``."""
    return shown(f"The task {name}")


def file_of(name: str) -> tuple[str, bytes] | None:
    """Name and content of the file of a user's own task; None where a task is imported."""
    place = Path(name.rpartition(":")[0])
    return (place.name, place.read_bytes()) if place.suffix == ".py" else None


def check_source(name: str, source: str) -> None:
    """Refuse to run another version of a user's file than the one that a run is of.

    Args:
        name: as ``find`` gave it.
        source: fingerprint of the file, as ``find`` gave it; empty to ask for none.

    Raises:
        ArgumentError: the file that this process has read is another one.
    """
    if source and _fingerprint(name) != source:
        raise ArgumentError(
            f"The file of the task {name} is not the one that the run was asked for with (its "
            f"fingerprint is {_fingerprint(name)}, asked for was {source}): it was changed "
            "meanwhile, or differs from machine to machine. Run the same command again."
        )


@cache
def _fingerprint(name: str) -> str:
    """Of the file as it is when first asked for, which is right after it was read."""
    file = module_at(name.rpartition(":")[0], _KIND).__file__
    return "" if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]
