"""Small nets that learned digits, some of them in ways that batch norm does not bear."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from renorm.lab.data import digits

Batch = tuple[Tensor, Tensor]


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 32, bias=False),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.Linear(32, 32, bias=False),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )


def loss(output: Tensor, batch: Batch) -> Tensor:
    return F.cross_entropy(output, batch[1])


def shuffled(size: int, count: int, seed: int) -> list[Batch]:
    data, generator = digits(), torch.Generator().manual_seed(seed)
    labels = len(data.train_labels)
    epochs = -(-count // (labels // size))
    order = [torch.randperm(labels, generator=generator) for _ in range(epochs)]
    parts = [i for one in order for i in one.split(size) if len(i) == size]
    return [(data.train_images[i], data.train_labels[i]) for i in parts[:count]]


def of_classes(classes: int, size: int, count: int, seed: int) -> list[Batch]:
    """Batches of so many classes, which are drawn anew for each."""
    data, generator = digits(), torch.Generator().manual_seed(seed)
    members = [torch.nonzero(data.train_labels == label).flatten() for label in range(10)]

    def batch() -> Batch:
        chosen = torch.randperm(10, generator=generator)[:classes].tolist()
        parts = [
            members[c][torch.randperm(len(members[c]), generator=generator)[: size // classes]]
            for c in chosen
        ]
        i = torch.cat(parts)
        return data.train_images[i], data.train_labels[i]

    return [batch() for _ in range(count)]


def trained(
    batches: Iterable[Batch], seed: int, *, lr: float, model: Any = None, momentum: float = 0.1
) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = net() if model is None else model
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.momentum = momentum
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    for x, y in batches:
        optimizer.zero_grad()
        F.cross_entropy(model.train()(x), y).backward()
        optimizer.step()
    return model


def healthy(seed: int) -> tuple[nn.Sequential, list[Batch]]:
    return trained(shuffled(32, 150, seed), seed, lr=0.05), shuffled(32, 40, seed + 50)


def stale(seed: int) -> tuple[nn.Sequential, list[Batch]]:
    """Running statistics that have hardly moved from where they began."""
    batches = shuffled(32, 150, seed)
    return trained(batches, seed, lr=0.05, momentum=0.001), shuffled(32, 40, seed + 50)


def keep_rate(seed: int) -> tuple[nn.Sequential, list[Batch]]:
    """A momentum of 0.99, meant as the part that is kept."""
    batches = shuffled(16, 150, seed)
    return trained(batches, seed, lr=0.05, momentum=0.99), shuffled(16, 80, seed + 50)


def of_two(seed: int) -> tuple[nn.Sequential, list[Batch]]:
    """Two examples a batch."""
    return trained(shuffled(2, 800, seed), seed, lr=0.01), shuffled(2, 500, seed + 50)


def one_class(seed: int) -> tuple[nn.Sequential, list[Batch]]:
    """All examples of a batch of one class."""
    batches = of_classes(1, 16, 300, seed)
    return trained(batches, seed, lr=0.02), of_classes(1, 16, 80, seed + 50)


def two_classes(seed: int) -> tuple[nn.Sequential, list[Batch]]:
    batches = of_classes(2, 16, 300, seed)
    return trained(batches, seed, lr=0.02), of_classes(2, 16, 80, seed + 50)


def tuned_by_two(seed: int) -> tuple[nn.Sequential, list[Batch]]:
    """Trained on batches of 32, and then tuned on batches of two."""
    before = trained(shuffled(32, 150, seed), seed, lr=0.05)
    tuned = trained(shuffled(2, 100, seed + 9), seed, lr=0.005, model=before)
    return tuned, shuffled(2, 500, seed + 50)


Case = Callable[[int], tuple[nn.Sequential, list[Batch]]]
