"""What the doctor says of torchvision's ResNet-18, trained briefly on photographs in three ways.

2,000 images of CIFAR-10, scaled to 64 x 64 pixels, 4,800 examples seen: in batches of 32 at random
(healthy), of 2 at random, and of 32 class by class. Each is diagnosed with batches like those of
its training, from all over an epoch; its console output is printed, and a page is written.

    python benchmarks/doctor_resnet18.py --data DIR --out DIR
    python benchmarks/doctor_resnet18.py --data DIR --out DIR --only sorted --try-fixes
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # it makes torchvision importable

from planted.case import classified
from planted.training import fit

import renorm
from renorm.errors import RenormError
from renorm.lab.conditions import Sampler, Shuffled, Sorted
from renorm.lab.data import cifar10
from renorm.lab.data.images import scaling
from renorm.lab.isolation import isolated
from renorm.report import diagnosis_console
from support.torchvision_shim import torchvision_models

IMAGES, SEEN, TESTED, SIDE = 2000, 4800, 1000, 64
MOST = 256  # batches given
SAMPLERS: dict[str, tuple[Sampler, int]] = {
    "healthy": (Shuffled(32, 32), 32),
    "batch of 2": (Shuffled(2, 2), 2),
    "sorted": (Sorted(32, 32), 32),
}
RATE = 0.05  # for batches of 32; in proportion for smaller ones

Batch = tuple[Tensor, Tensor]


class Photographs:
    """CIFAR-10 from the files in a folder, scaled as it is asked for."""

    def __init__(self, folder: Path) -> None:
        self._images = cifar10(folder)
        self._scale = scaling(self._images.train_images)

    def batches(self, sampler: Sampler, seed: int) -> Iterator[Batch]:
        """Training batches without an end."""
        images, labels = self._images.train_images[:IMAGES], self._images.train_labels[:IMAGES]
        generator = torch.Generator().manual_seed(seed)
        for indices in sampler.batches(labels, generator):
            yield self._large(images[indices]), labels[indices]

    def accuracy(self, model: nn.Module) -> float:
        """Percent of test images that are classified rightly in eval mode."""
        model.eval()
        found, hits = self._images, 0
        with torch.no_grad():
            for part in torch.arange(TESTED).split(50):
                scores = model(self._large(found.test_images[part]))
                hits += int((scores.argmax(1) == found.test_labels[part]).sum())
        model.train()
        return 100 * hits / TESTED

    def _large(self, images: Tensor) -> Tensor:
        return F.interpolate(self._scale(images), size=SIDE, mode="bilinear")


def trained(photographs: Photographs, name: str, seed: int) -> nn.Module:
    """The net, after it has seen its examples."""
    sampler, size = SAMPLERS[name]
    with isolated(seed):
        model = torchvision_models().resnet18(num_classes=10)
        return fit(model, photographs.batches(sampler, seed), SEEN // size, RATE * size / 32)


def diagnosed(
    photographs: Photographs, name: str, model: nn.Module, options: argparse.Namespace
) -> None:
    """Print what the doctor says, and write its page."""
    sampler, size = SAMPLERS[name]
    epoch = IMAGES // size
    stream = photographs.batches(sampler, options.seed + 1)
    batches = list(islice(stream, 0, epoch, -(-epoch // MOST)))
    begun = time.perf_counter()
    found = renorm.diagnose(model, batches, classified, try_fixes=options.try_fixes)
    took = time.perf_counter() - begun
    accuracy = photographs.accuracy(model)
    page = options.out / f"{name.replace(' ', '_')}.html"
    print(f"\n{name}: {accuracy:.1f} % in eval mode, diagnosed in {took:.1f} s\n")
    diagnosis_console.show(found.survey, found.findings, Console(), page)
    found.to_html(page, command=f"python benchmarks/doctor_resnet18.py --only {name!r}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, diagnose and show; returns the exit code."""
    options = parsed(arguments)
    try:
        photographs = Photographs(options.data)
        options.out.mkdir(parents=True, exist_ok=True)
        for name in options.only:
            diagnosed(photographs, name, trained(photographs, name, options.seed), options)
    except (RenormError, OSError) as error:
        print(f"doctor_resnet18: {error}", file=sys.stderr)
        return 2
    return 0


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder that has cifar-10-batches-py")
    add("--out", type=Path, required=True, help="folder for the pages")
    add("--only", nargs="+", choices=SAMPLERS, default=list(SAMPLERS), help="which of them")
    add("--seed", type=int, default=0, help="of weights and orders (0)")
    add("--try-fixes", action="store_true", help="rank the fixes, too")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
