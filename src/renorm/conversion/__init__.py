"""nn.BatchNorm to batch renorm and back, over whole module trees, in place."""

from renorm.conversion.backward import to_batchnorm as to_batchnorm
from renorm.conversion.forward import convert as convert
