"""ResNet-18 in plain torch, for a training step of a whole net without another dependency."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import renorm
from renorm.bench.providers import BASELINE, Provider, mid_ramp
from renorm.bench.timing import Clock, Marks, Step
from renorm.lab.models.resnet import Block

CLASSES = 100


def resnet18() -> nn.Sequential:
    """The net of He et al. 2016 (arXiv 1512.03385), table 1."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, padding=3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, padding=1),
    ]
    inside = 64
    for outside, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [Block(inside, outside, stride), Block(outside, outside, 1)]
        inside = outside
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, CLASSES))


def variants(provider: Provider) -> dict[str, Callable[[], nn.Module]]:
    """The net with nn.BatchNorm, and converted; both from the same weights."""

    def plain() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return resnet18()

    def converted() -> nn.Module:
        options = {"kernel": provider.kernel, "backward": provider.backward}
        return mid_ramp(renorm.convert(plain(), **options))

    return {BASELINE: plain, provider.name: converted}


def step_of(net: nn.Module, images: Tensor) -> Step:
    """A training step: forward with the loss, then backward with SGD's update."""
    labels = torch.arange(len(images), device=images.device) % CLASSES
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)

    def step(clock: Clock) -> Marks:
        optimizer.zero_grad(set_to_none=True)
        start = clock.mark()
        loss = F.cross_entropy(net(images), labels)
        middle = clock.mark()
        loss.backward()
        optimizer.step()
        return [start, middle, clock.mark()]

    return step
