"""The file that ``renorm doctor --init`` writes: a case of one's own, to begin with."""

from pathlib import Path

from renorm.doctor.saving import writing
from renorm.errors import ArgumentError

TEMPLATE = '''"""What renorm doctor is to look at:  renorm doctor {name}:case"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from renorm.doctor import Case


def case():
    """A net trained on digits in batches of 2. Put your own model and data in its place.

    A dict with the same entries serves as well, and so does a tuple (model, batches, loss).
    """
    torch.manual_seed(0)
    images, labels = digits()
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.003, momentum=0.9)
    # what is to be found: 2 examples are what fits where images are large, and too few for batch
    # norm. With 16 the doctor has less to say
    batches = cut(images[:1500], labels[:1500], 2)
    train(model, batches, optimizer)
    return Case(
        # your model, with the weights that it has now: trained, or about to be fine-tuned
        model=model,
        # what it trains on, put together as in training: a list or a DataLoader. A batch is a
        # tensor; a tuple or a list that begins with the input; a dict of keyword arguments; or
        # anything else, if you give forward. Ten to a hundred batches are enough
        batches=batches[:100],
        # (output, batch) -> the mean over examples; without, the findings are on outputs alone
        loss=loss,
        # for --try-fixes: what trains the model, and batches that it was not trained on
        optimizer=optimizer,
        held_out=cut(images[1500:], labels[1500:], 16),
        # how the model is called with a batch, where that is another way:
        # forward=lambda model, batch: model(batch["image"], batch["mask"]),
        # the model before renorm.convert or convert_sync_batchnorm, to see what was lost:
        # before=original,
        # what the model is for: "training", "finetuning" or "export"
        purpose="training",
        # how many steps the run still has (None if unknown), and forwards of one step
        steps=None,
        accumulation=1,
    )


def loss(output, batch):
    """As in your training loop."""
    return F.cross_entropy(output, batch[1])


def net():
    """Your model."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 4 * 4, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU(),
        nn.Linear(64, 10),
    )


def train(model, batches, optimizer):
    """One epoch; yours are done already."""
    model.train()
    for batch in batches:
        optimizer.zero_grad()
        loss(model(batch[0]), batch).backward()
        optimizer.step()


def digits():
    """scikit-learn's digits (1797, 1, 8, 8) and their classes (1797,), in an order at random."""
    pixels, targets = load_digits(return_X_y=True)
    order = torch.randperm(len(targets))
    images = torch.from_numpy(pixels).float().view(-1, 1, 8, 8) / 8 - 1
    return images[order], torch.from_numpy(targets)[order]


def cut(images, labels, size):
    """A list of batches."""
    return list(zip(images.split(size), labels.split(size)))
'''


def write(path: Path) -> None:
    """Write the template into a file.

    Raises:
        ArgumentError: there is such a file, it does not end in .py, or it cannot be written.
    """
    if path.suffix != ".py":
        raise ArgumentError(
            f"The case is a Python file, got {path}. Give {path.with_suffix('.py')}."
        )
    if path.exists():
        raise ArgumentError(f"{path} is there already. Move it away, or edit it.")
    with writing(path), path.open("x", encoding="utf-8") as file:
        file.write(TEMPLATE.replace("{name}", str(path)))
