"""Every task on small data of its own kind."""

import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lab.datafiles import NAMES, md5, shapes, write_bccd, write_mnist, write_omniglot
from renorm.errors import ArgumentError, DataError
from renorm.lab import training
from renorm.lab.conditions import CONDITIONS
from renorm.lab.data import BloodCells, Images
from renorm.lab.tasks import TASKS, Task, find
from renorm.lab.tasks.cells import CellDetection
from renorm.lab.tasks.classification import Cifar10, Classification, Digits, Mnist, Table
from renorm.lab.tasks.embedding import MetricLearning
from renorm.report.records import Specification

SHORT = Specification("", "", "batch_norm", "iid", 0, 10, 0.05, 8, 4)
MODELS = {"cells": "unet", "table": "mlp"}


def images(shape: tuple[int, ...], classes: int = 4, note: str = "", count: int = 40) -> Images:
    """Noise around a pattern for each class; other classes in the test if there are more than 4."""
    draw = torch.Generator().manual_seed(0)
    patterns = torch.randint(0, 200, (classes, *shape), generator=draw)
    labels = torch.arange(count) % 4
    parts = []
    for these in (labels, labels + classes - 4):
        noise = torch.randint(0, 40, (count, *shape), generator=draw)
        parts += [(patterns[these] + noise).to(torch.uint8), these]
    return Images(*parts, classes=classes, note=note)


def table() -> Images:
    found = images((30,))
    return replace(
        found,
        train_images=found.train_images.float() / 100 - 1,
        test_images=found.test_images.float() / 100 - 1,
    )


def cells() -> BloodCells:
    """Photographs of 48 x 32, each with a ground of its own and a square of every kind."""
    draw = torch.Generator().manual_seed(0)
    photographs = torch.arange(90, 114).view(-1, 1, 1, 1).repeat(1, 3, 32, 48).to(torch.uint8)
    boxes = []
    for photograph in photographs:
        left, top = (int(torch.randint(0, 8, (), generator=draw)) for _ in range(2))
        for kind in range(3):
            photograph[kind, top : top + 8, left + 16 * kind : left + 16 * kind + 8] = 250
        at = [[k, left + 16 * k, top, left + 16 * k + 8, top + 8] for k in range(3)]
        boxes.append(torch.tensor(at) * torch.tensor([1, 4, 4, 4, 4]))
    return BloodCells(photographs, tuple(boxes), torch.arange(16), torch.arange(16, 24), 4)


@pytest.fixture
def build() -> Callable[[str], Task]:
    made: dict[str, Callable[[str], Task]] = {
        "digits": lambda model: Digits(lambda: images((1, 8, 8)), model),
        "mnist": lambda model: Mnist(lambda: images((1, 12, 12)), model),
        "cifar10": lambda model: Cifar10(lambda: images((3, 8, 8)), model),
        "table": lambda model: Table(table, model),
        "omniglot": lambda model: MetricLearning(lambda: images((1, 8, 8), classes=8), model),
        "cells": lambda model: CellDetection(cells, model),
    }
    return lambda name: made[name](MODELS.get(name, "convnet"))


KINDS = ["digits", "mnist", "cifar10", "table", "omniglot", "cells"]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("normalizer", ["batch_norm", "batch_renorm"])
@pytest.mark.parametrize("condition", ["iid", "clustered"])
def test_every_task_trains(
    build: Callable[[str], Task], name: str, normalizer: str, condition: str
) -> None:
    task = build(name)
    specification = replace(SHORT, normalizer=normalizer, condition=condition)
    if name == "cells":
        condition = {"iid": "iid", "clustered": "microbatch"}[condition]
        specification = replace(specification, condition=condition, batch_size=4, group_size=2)
    plan = training.plan(specification)
    task.check(plan)
    torch.manual_seed(0)
    outcome = task.train(plan)
    assert outcome.diverged_at is None
    assert outcome.score is not None
    assert 0 <= outcome.score <= 1
    assert len(outcome.curve) == 10
    torch.manual_seed(0)
    assert replace(task.train(plan), step_seconds=outcome.step_seconds) == outcome


@pytest.mark.parametrize("name", KINDS)
def test_every_task_is_searched_on_examples_that_are_not_tested(
    build: Callable[[str], Task], name: str
) -> None:
    task: Any = build(name)
    plan = training.plan(replace(SHORT, condition="microbatch", batch_size=4, group_size=2))
    searched = training.plan(replace(plan.specification, split="validation"))
    task.check(searched)
    full, part = task.problem(plan), task.problem(searched)
    everything = full.train.inputs
    held_out = part.test.examples.inputs[part.test.indices]
    kept = part.train.examples.inputs[part.train.indices]
    assert len(kept) + len(held_out) == len(everything)
    assert not any((kept == one).flatten(1).all(1).any() for one in held_out)


def test_a_search_for_an_embedding_is_judged_by_classes_that_it_does_not_train_on() -> None:
    task = MetricLearning(lambda: images((1, 8, 8), classes=8), "convnet")
    problem = task.problem(training.plan(replace(SHORT, split="validation")))
    assert problem.train.labels is not None
    assert problem.test.labels is not None
    assert problem.test.labels.unique().tolist() == [0]
    assert problem.train.labels.unique().tolist() == [1, 2, 3]


def test_dense_maps_have_no_classes_to_put_together(build: Callable[[str], Task]) -> None:
    plan = training.plan(replace(SHORT, task="cells", condition="clustered"))
    with pytest.raises(ArgumentError, match="'cells' have no labels"):
        build("cells").check(plan)


def test_images_that_are_too_small_for_a_net_are_refused() -> None:
    task = Classification(lambda: images((1, 3, 3)), "convnet")
    with pytest.raises(ArgumentError, match="at least 4 x 4"):
        task.train(training.plan(SHORT))


@pytest.mark.parametrize("note", ["", "JPEG q75 copies"])
def test_figures_of_copies_say_so(note: str) -> None:
    task = Cifar10(lambda: images((3, 8, 8), note=note), "convnet")
    assert task.metric.name == ("accuracy, JPEG q75 copies" if note else "accuracy")
    assert task.metric.about == Classification(lambda: images((1, 8, 8)), "mlp").metric.about


def test_images_are_read_once() -> None:
    read = []

    def once() -> Images:
        read.append(1)
        return images((1, 8, 8))

    task = Digits(once, "convnet")
    assert not read
    task.check(training.plan(SHORT))
    assert task.metric.name == "accuracy"
    assert task.data()[0] is task.data()[0]
    assert len(read) == 1


def test_a_net_is_judged_by_some_of_each_class_where_there_are_many() -> None:
    class Few(Classification):
        judged = 10

    task = Few(lambda: images((1, 8, 8)), "convnet")
    problem = task.problem(training.plan(SHORT))
    assert problem.test.labels is not None
    assert problem.test.labels.bincount().tolist() == [3, 3, 3, 3]  # every fourth of ten
    assert len(task.data()[1]) == 40


@pytest.mark.parametrize("name", TASKS)
def test_defaults_are_what_the_lab_has(name: str, tmp_path: Path) -> None:
    entry = TASKS[name]
    assert find(name).model == entry.models[0]
    task = entry.build(entry.models[0], tmp_path)
    assert task.steps >= 10
    assert task.lr > 0
    assert task.batch_size % task.group_size == 0
    assert set(task.conditions) - {"pk"} <= CONDITIONS.keys()


WITHOUT_FILES = {"digits", "binary_digits", "tabular", "pendulum"}


@pytest.mark.parametrize("name", sorted(TASKS.keys() - WITHOUT_FILES))
def test_a_task_without_its_data_says_what_to_do(name: str, tmp_path: Path) -> None:
    task = TASKS[name].build(TASKS[name].models[0], tmp_path)
    with pytest.raises(DataError, match=rf"is not complete: .*{tmp_path}.*--data-dir"):
        task.check(training.plan(replace(SHORT, task=name)))


def test_a_run_from_files_to_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = importlib.import_module("renorm.lab.data.mnist")
    folder = tmp_path / "FashionMNIST" / "raw"
    write_mnist(folder, zipped=True)
    sums = {f"{name}-ubyte": (md5(folder / f"{name}-ubyte.gz"), "") for name in NAMES}
    known = replace(module.FASHION_MNIST, md5=sums)
    monkeypatch.setattr(module, "FASHION_MNIST", known)
    record = training.run(replace(SHORT, task="fashion_mnist", model="mlp"), tmp_path)
    assert record.metric == "accuracy"
    assert record.score is not None


def test_a_run_of_metric_learning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = importlib.import_module("renorm.lab.data.omniglot")
    path = write_omniglot(tmp_path / "omniglot", alphabets=8, characters=4, drawings=6)
    monkeypatch.setattr(module, "MD5", md5(path))
    monkeypatch.setattr(module, "SHAPES", shapes(path, tuple(module.SHAPES)))
    long = replace(SHORT, task="omniglot", condition="two_classes", steps=10, batch_size=16)
    record = training.run(replace(long, model="mlp", normalizer="group_norm"), tmp_path)
    assert record.metric == "recall@1"
    assert record.score is not None
    assert record.score > 0.5  # 5 of the other 71 are right by chance
    assert record.gap == 0


def test_a_run_on_photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = importlib.import_module("renorm.lab.data.bccd")
    boxes = [[[2, 40, 80, 60, 120], [0, 0, 0, 40, 40]], [[1, 600, 440, 640, 480]], []]
    path = write_bccd(tmp_path / "bccd", boxes, test=[0])
    monkeypatch.setattr(module, "MD5", md5(path))
    monkeypatch.setattr(module, "SHAPES", shapes(path, tuple(module.SHAPES)))
    task = TASKS["cells"].build("unet", tmp_path)
    train, test = task.data()  # pyright: ignore[reportAttributeAccessIssue]
    photograph, objects = test.batch(torch.tensor([0]))
    assert photograph.shape == (1, 3, 120, 160)
    assert objects.tolist() == [[[2, 6.25, 12.5, 1.25], [0, 2.5, 2.5, 2.5]]]
    assert train.batch(torch.tensor([1]))[1].tolist() == [[[-1] * 4] * 2]
    net = task.model()  # pyright: ignore[reportAttributeAccessIssue]
    maps = net(photograph)
    assert maps.shape == (1, 3, 60, 80)
    assert 0.02 < maps.sigmoid().median() < 0.4  # near the prior of 0.1


def test_cells_that_are_seen_are_found() -> None:
    task = CellDetection(cells, "unet")
    sizes = {"steps": 60, "lr": 1e-2, "batch_size": 4, "group_size": 2}
    outcome = task.train(training.plan(replace(SHORT, condition="microbatch", **sizes)))
    assert outcome.score is not None
    assert outcome.score > 0.8
