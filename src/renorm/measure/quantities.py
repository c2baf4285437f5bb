"""The quantities by name."""

from renorm.measure.batch_noise import BatchNoiseQuantity
from renorm.measure.quantity import Quantity

QUANTITIES: dict[str, type[Quantity]] = {
    "batch_noise": BatchNoiseQuantity,
}
