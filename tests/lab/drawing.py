"""Batches drawn from a sampler."""

from itertools import islice

import torch
from torch import Tensor

from renorm.lab.conditions import Sampler


def drawn(sampler: Sampler, labels: Tensor, count: int, seed: int = 0) -> list[Tensor]:
    """The first ``count`` batches of a seed."""
    return list(islice(sampler.batches(labels, torch.Generator().manual_seed(seed)), count))


def no_classes(examples: int) -> Tensor:
    """The labels of examples without classes."""
    return torch.zeros(examples, dtype=torch.long)
