"""Dense prediction with few images in a batch: blood cells are found in photographs."""

from collections.abc import Callable
from functools import cached_property
from math import log
from statistics import fmean
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from renorm.lab import models
from renorm.lab.data import BloodCells
from renorm.lab.data.bccd import CLASSES
from renorm.lab.data.images import scaling
from renorm.lab.examples import Examples, TensorExamples
from renorm.lab.models import UNet
from renorm.lab.tasks.base import Metric
from renorm.lab.tasks.detection import f1, focal, found, heat_maps
from renorm.lab.tasks.supervised import Supervised

CELL = 2  # pixels of an image in a cell of the U-Net's maps
PRIOR = 0.1  # the sigmoid of a map before training: nearly nothing is a peak


class CellDetection(Supervised):
    """A U-Net that draws a peak at the centre of each red cell, white cell and platelet.

    A batch has few images, since a map of many positions takes much memory; each has thousands of
    positions, which resemble one another. The optimizer is Adam's.

    Args:
        cells: reads the data set; called once, when it is first needed.
        model: name of the net, with maps of half the resolution.
    """

    metric: ClassVar[Metric] = Metric(
        "F1", "% F1 of the cells found, the mean over red cells, white cells and platelets"
    )
    steps: ClassVar[int] = 300
    lr: ClassVar[float] = 3e-3
    batch_size: ClassVar[int] = 4
    group_size: ClassVar[int] = 2
    conditions: ClassVar[tuple[str, ...]] = ("iid", "microbatch")

    def __init__(self, cells: Callable[[], BloodCells], model: str) -> None:
        self._read = cells
        self._model = model

    def data(self) -> tuple[Examples, Examples]:
        """Photographs; a target (m, 4) has the cells, see ``detection.heat_maps``."""
        return self._examples

    def model(self) -> nn.Module:
        """A new net, its weights drawn from torch's generator."""
        shape = tuple(self._cells.images.shape[1:])
        net = models.find(self._model).build(shape, len(CLASSES))
        assert isinstance(net, UNet)
        assert net.head.bias is not None
        nn.init.constant_(net.head.bias, log(PRIOR / (1 - PRIOR)))
        return net

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The focal loss of maps (n, 3, H, W) for the cells, a scalar."""
        return focal(outputs, heat_maps(targets, *outputs.shape[1:]))

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        """The mean over the classes of F1."""
        return fmean(f1(found(outputs), targets))

    def optimizer(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        """Adam: the few peaks give gradients of very different sizes."""
        return torch.optim.Adam(model.parameters(), lr)

    @cached_property
    def _cells(self) -> BloodCells:
        return self._read()

    @cached_property
    def _examples(self) -> tuple[Examples, Examples]:
        cells = self._cells
        size = CELL * cells.reduction
        objects = pad_sequence(
            [centred(boxes, size) for boxes in cells.boxes], batch_first=True, padding_value=-1
        )
        scale = scaling(cells.images[cells.train])
        return tuple(
            TensorExamples(cells.images[part], objects[part], prepare=scale)
            for part in (cells.train, cells.test)
        )  # pyright: ignore[reportReturnType]


def centred(boxes: Tensor, size: int) -> Tensor:
    """Class, x, y and radius (n, 4) float32 of boxes, in cells of ``size`` pixels.

    The radius is that of the circle in the box: half its shorter side.

    Args:
        boxes: (n, 5): class, left, top, right, bottom in pixels.
        size: pixels.
    """
    kinds, left, top, right, bottom = boxes.float().unbind(1)
    radius = torch.minimum(right - left, bottom - top) / 2
    places = torch.stack([(left + right) / 2, (top + bottom) / 2, radius], 1) / size
    return torch.cat([kinds[:, None], places], 1)
