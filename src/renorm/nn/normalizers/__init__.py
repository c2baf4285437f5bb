"""Other normalizers than batch renorm and its relatives, and all of them by name."""

from renorm.nn.normalizers.weights import ScaledWeightStandardization as ScaledWeightStandardization
from renorm.nn.normalizers.weights import WeightBased as WeightBased
from renorm.nn.normalizers.weights import WeightNorm as WeightNorm
