"""The file that ``renorm compare --init`` writes: a task of one's own, to begin with."""

from pathlib import Path

from renorm.errors import ArgumentError

NAME = "my_task.py"
TEMPLATE = '''"""A task of my own:  renorm compare --task my_task.py:MyTask"""

import torch
from torch import nn

from renorm.lab.examples import DatasetExamples, TensorExamples
from renorm.lab.tasks import Supervised


class MyTask(Supervised):
    """Points on two spirals. Put your own model and data in its place."""

    # what renorm compare uses unless told otherwise; examples without labels (the third argument
    # of TensorExamples) need conditions = ("iid", "microbatch")
    steps, lr, batch_size, group_size = 500, 0.1, 32, 4

    def data(self):
        """Training and test examples; for a torch Dataset: DatasetExamples(dataset, labels).

        Called for every run, so keep what is slow to read, and the same at every call: a split at
        random has a generator of its own.
        """
        points, labels = spirals(2000)
        return (
            TensorExamples(points[:1500], labels[:1500], labels[:1500]),
            TensorExamples(points[1500:], labels[1500:], labels[1500:]),
        )

    def model(self):
        """Your model, with nn.BatchNorm where the normalizers to be compared shall stand."""
        return nn.Sequential(
            nn.Linear(2, 64), nn.BatchNorm1d(64), nn.ReLU(),
            nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(),
            nn.Linear(64, 2),
        )

    # loss(outputs, targets), score(outputs, targets) and optimizer(model, lr) are those of
    # classification; write your own where your task is another. More score is better, and metric
    # is what it is called: Metric("negative MSE", "minus the mean squared error", percent=False),
    # from renorm.lab.tasks


def spirals(count):
    """Points (count, 2) and the spiral that each is on (count,)."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 2
    turn = 6 * torch.rand(count, generator=generator).sqrt()
    angle = turn + torch.pi * labels
    points = torch.stack([turn * angle.cos(), turn * angle.sin()], 1) / 3
    return points + 0.05 * torch.randn(points.shape, generator=generator), labels
'''


def write(folder: Path) -> Path:
    """Write the template into ``folder``; its path.

    Raises:
        ArgumentError: there is such a file, or it cannot be written.
    """
    path = folder / NAME
    try:
        with path.open("x") as file:
            file.write(TEMPLATE)
    except FileExistsError as error:
        raise ArgumentError(f"{path} is there already. Move it away, or edit it.") from error
    except OSError as error:
        raise ArgumentError(f"{path} cannot be written: {error.strerror}.") from error
    return path
