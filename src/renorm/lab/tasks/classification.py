"""Images with labels."""

from collections.abc import Callable
from typing import ClassVar

from torch import nn

from renorm.lab.data import Images
from renorm.lab.examples import Examples
from renorm.lab.models import MODELS
from renorm.lab.tasks.supervised import Supervised


class Classification(Supervised):
    """Labelled images, classified by one of the nets of ``renorm.lab.models``.

    Args:
        images: reads the data set; called when they are first needed.
        model: name of the net.
    """

    def __init__(self, images: Callable[[], Images], model: str) -> None:
        self._images = images
        self._model = model

    def data(self) -> tuple[Examples, Examples]:
        """The images for training and those for testing."""
        return self._images().examples()

    def model(self) -> nn.Module:
        """A new net, its weights drawn from torch's generator."""
        images = self._images()
        return MODELS[self._model].build(tuple(images.train_images.shape[1:]), images.classes)
