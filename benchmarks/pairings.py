"""Which layer feeds each norm, and what the norms would remember, in three kinds of model.

    python benchmarks/pairings.py                              # all of them
    python benchmarks/pairings.py --models unet --sample 16 --compensation exact

A model is converted to cross-iteration batch norm with an example input, its summary is printed,
and it is run for two steps to compare the memory that the summary says with what is held.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # it makes torchvision importable

import renorm
from renorm.cli import DONE
from renorm.nn import CrossIterationBatchNorm
from support.torchvision_shim import timm, torchvision_models

_SIDE = 64


class UNet(nn.Module):
    """Two levels, with a skip connection and a learned upsampling, which no norm follows."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.pool = _double(3, 16), nn.MaxPool2d(2)
        self.deep = _double(16, 32)
        self.up, self.merged = nn.ConvTranspose2d(32, 16, 2, stride=2), _double(32, 16)
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, 2, H, W) of images (N, 3, H, W), of even sizes."""
        skip = self.down(x)
        raised = self.up(self.deep(self.pool(skip)))
        return self.head(self.merged(torch.cat([raised, skip], 1)))


def _double(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [nn.Conv2d(channels, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


MODELS: dict[str, Callable[[], Any]] = {
    "resnet18": lambda: torchvision_models().resnet18(),
    "unet": UNet,
    "efficientnet_b0": lambda: timm().create_model("efficientnet_b0"),
}


def shown(build: Callable[[], Any], **settings: Any) -> str:
    """The summary of a converted model, and the bytes that its norms hold after two steps."""
    model = build()
    example = torch.zeros(1, 3, _SIDE, _SIDE)
    renorm.convert(model, to="cross_iteration", example=example, **settings)
    summary = renorm.summary(model)
    model.train()
    for _ in range(2):
        model(torch.randn(2, 3, _SIDE, _SIDE))
    norms = [m for m in model.modules() if isinstance(m, CrossIterationBatchNorm)]
    held = sum(t.untyped_storage().nbytes() for m in norms for t in m._history.tensors.values())
    weights = sum(m.source.weight.numel() for m in norms if m.source is not None)
    copies = (norms[0].window - 1) * 3 * weights * 4
    return (
        f"{summary}\nheld: {held / 2**20:.2f} MiB, {100 * held / copies:.0f} % of the "
        f"{copies / 2**20:.2f} MiB of two gradients and a copy of the weights an iteration\n"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--window", type=int, default=8)
    parser.add_argument("--compensation", default="first_order", help="none, first_order or exact")
    parser.add_argument("--sample", type=int, default=None, help="positions; all without it")
    given = vars(parser.parse_args(arguments))
    for name in given.pop("models"):
        print(f"{name}\n{shown(MODELS[name], **given)}")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
