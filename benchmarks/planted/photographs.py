"""Crops of the two photographs that come with scikit-learn, and clips that pan over them.

The task is to tell the colours of a grey image: from its brightness, the differences of red and of
blue to it, at half the resolution.
"""

from collections.abc import Iterator
from functools import cache

import torch
from sklearn.datasets import load_sample_images
from torch import Generator, Tensor
from torch.nn import functional as F

Batch = tuple[Tensor, Tensor]
HELD_OUT = 128  # columns at the right of each photograph, for testing


@cache
def photographs() -> Tensor:
    """(2, 3, 427, 640) float32, with mean 0 and deviation 1."""
    pixels = [torch.tensor(image).permute(2, 0, 1) for image in load_sample_images().images]
    images = torch.stack(pixels).float()
    return (images - images.mean()) / images.std()


def coloured(images: Tensor) -> Batch:
    """Grey (N, 1, H, W), and colours (N, 2, H / 2, W / 2), of images (N, 3, H, W)."""
    grey = images.mean(1, keepdim=True)
    return grey, 2 * F.avg_pool2d(images[:, ::2] - grey, 2)


def crops(size: int, batch: int, generator: Generator) -> Iterator[Batch]:
    """Batches of crops from everywhere, without an end."""
    while True:
        which, rows, columns = _places(batch, size, generator)
        yield coloured(_cut(which, rows, columns, size))


def clips(size: int, count: int, frames: int, generator: Generator) -> Iterator[Batch]:
    """Batches of some clips, one after the other, without an end.

    The camera pans by up to 2 pixels a frame in each direction.
    """
    time = torch.arange(frames)
    while True:
        which, rows, columns = _places(count, size + 2 * frames, generator)
        speed = 4 * torch.rand((2, count, 1), generator=generator) - 2
        first = 2 * frames * (speed < 0)  # so that all frames are within the photograph
        down, right = ((speed * time).round().long() + first).flatten(1)
        rows, columns = (place.repeat_interleave(frames) for place in (rows, columns))
        which = which.repeat_interleave(frames)
        yield coloured(_cut(which, rows + down, columns + right, size))


def held_out(size: int) -> Batch:
    """Crops of the part that no batch is from, side by side."""
    part = photographs()[..., -HELD_OUT:]
    tiles = part.unfold(2, size, size).unfold(3, size, size)
    return coloured(tiles.permute(0, 2, 3, 1, 4, 5).flatten(0, 2))


def explained(output: Tensor, batch: Batch) -> float:
    """Percent of the variance of the colours that the output explains; at most 100."""
    target = batch[1]
    return 100 * (1 - float((output - target).square().mean() / target.var()))


def off(output: Tensor, batch: Batch) -> Tensor:
    """The mean square of what the colours are off."""
    return F.mse_loss(output, batch[1])


def _places(count: int, size: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Which photograph, and the upper left corners of crops that fit."""
    images = photographs()
    high, wide = images.shape[2] - size, images.shape[3] - HELD_OUT - size
    limits = (len(images), high + 1, wide + 1)
    which, rows, columns = (torch.randint(limit, (count,), generator=generator) for limit in limits)
    return which, rows, columns


def _cut(which: Tensor, rows: Tensor, columns: Tensor, size: int) -> Tensor:
    across = torch.arange(size)
    return photographs()[
        which[:, None, None, None],
        torch.arange(3)[:, None, None],
        (rows[:, None] + across)[:, None, :, None],
        (columns[:, None] + across)[:, None, None, :],
    ]
