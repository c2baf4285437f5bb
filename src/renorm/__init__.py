"""Batch normalization for the batches people really have."""

from renorm import functional as functional
from renorm import limits as limits
from renorm import nn as nn
from renorm.errors import RenormError as RenormError
from renorm.nn import BatchRenorm1d as BatchRenorm1d
from renorm.nn import BatchRenorm2d as BatchRenorm2d
from renorm.nn import BatchRenorm3d as BatchRenorm3d
from renorm.nn import BatchRenormAct2d as BatchRenormAct2d
from renorm.nn import LazyBatchRenorm1d as LazyBatchRenorm1d
from renorm.nn import LazyBatchRenorm2d as LazyBatchRenorm2d
from renorm.nn import LazyBatchRenorm3d as LazyBatchRenorm3d
from renorm.nn import freeze as freeze
from renorm.nn import unfreeze as unfreeze

__version__ = "0.1.0"
