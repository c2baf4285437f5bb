"""Batch normalization for the batches people really have.

Layers with nn.BatchNorm's state: ``BatchRenorm1d``, ``2d``, ``3d``, with an activation
``BatchRenormAct1d``, ``2d``, ``3d``, and ``CrossIterationBatchNorm1d``, ``2d``, ``3d``. Schedules
of the former (``limits``), and whole models: ``convert``, ``fuse``, ``calibrate``, ``freeze``,
``summary``, ``to_batchnorm``. ``normalizer`` makes any of those compared by name, and
``normalizers`` lists them. ``measure`` observes them in training, ``diagnose`` says what is
wrong with a model; ``checkpoints`` maps those of other libraries.
"""

import importlib as _importlib
import typing as _typing

from renorm import checkpoints as checkpoints
from renorm import distributed as distributed
from renorm import functional as functional
from renorm import limits as limits
from renorm import nn as nn
from renorm.calibration import calibrate as calibrate
from renorm.conversion import convert as convert
from renorm.conversion import fuse as fuse
from renorm.conversion import to_batchnorm as to_batchnorm
from renorm.conversion import unfuse as unfuse
from renorm.errors import ArgumentError as ArgumentError
from renorm.errors import CollectiveError as CollectiveError
from renorm.errors import ConversionError as ConversionError
from renorm.errors import RenormError as RenormError
from renorm.inspection import summary as summary
from renorm.nn import BatchRenorm1d as BatchRenorm1d
from renorm.nn import BatchRenorm2d as BatchRenorm2d
from renorm.nn import BatchRenorm3d as BatchRenorm3d
from renorm.nn import BatchRenormAct1d as BatchRenormAct1d
from renorm.nn import BatchRenormAct2d as BatchRenormAct2d
from renorm.nn import BatchRenormAct3d as BatchRenormAct3d
from renorm.nn import CrossIterationBatchNorm1d as CrossIterationBatchNorm1d
from renorm.nn import CrossIterationBatchNorm2d as CrossIterationBatchNorm2d
from renorm.nn import CrossIterationBatchNorm3d as CrossIterationBatchNorm3d
from renorm.nn import CrossIterationBatchNormAct2d as CrossIterationBatchNormAct2d
from renorm.nn import LazyBatchRenorm1d as LazyBatchRenorm1d
from renorm.nn import LazyBatchRenorm2d as LazyBatchRenorm2d
from renorm.nn import LazyBatchRenorm3d as LazyBatchRenorm3d
from renorm.nn import LazyBatchRenormAct1d as LazyBatchRenormAct1d
from renorm.nn import LazyBatchRenormAct2d as LazyBatchRenormAct2d
from renorm.nn import LazyBatchRenormAct3d as LazyBatchRenormAct3d
from renorm.nn import accumulate as accumulate
from renorm.nn import freeze as freeze
from renorm.nn import unfreeze as unfreeze
from renorm.nn.normalizers import normalizer as normalizer
from renorm.nn.normalizers import normalizers as normalizers

__version__ = "0.1.0"

if _typing.TYPE_CHECKING:
    from renorm import doctor as doctor
    from renorm import measure as measure
    from renorm.doctor import diagnose as diagnose

# imported where they are first asked for: they take numpy along
_LATER = {"measure": "renorm.measure", "doctor": "renorm.doctor"}


def __getattr__(name: str) -> _typing.Any:
    """``renorm.measure``, ``renorm.doctor`` and ``renorm.diagnose``."""
    if name in _LATER:
        return _importlib.import_module(_LATER[name])
    if name == "diagnose":
        return _importlib.import_module("renorm.doctor").diagnose
    raise AttributeError(f"module 'renorm' has no attribute {name!r}")
