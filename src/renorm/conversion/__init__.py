"""nn.BatchNorm to batch renorm and back, and layers fused, over whole module trees, in place."""

from renorm.conversion.backward import to_batchnorm as to_batchnorm
from renorm.conversion.forward import convert as convert
from renorm.conversion.fusion import fuse as fuse
from renorm.conversion.fusion import unfuse as unfuse
