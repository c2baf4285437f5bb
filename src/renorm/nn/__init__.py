"""The layers: the only place that writes buffers."""

from renorm.nn.accumulation import accumulate as accumulate
from renorm.nn.activated import BatchRenormAct as BatchRenormAct
from renorm.nn.activated import BatchRenormAct1d as BatchRenormAct1d
from renorm.nn.activated import BatchRenormAct2d as BatchRenormAct2d
from renorm.nn.activated import BatchRenormAct3d as BatchRenormAct3d
from renorm.nn.batch_renorm import BatchRenorm as BatchRenorm
from renorm.nn.batch_renorm import BatchRenorm1d as BatchRenorm1d
from renorm.nn.batch_renorm import BatchRenorm2d as BatchRenorm2d
from renorm.nn.batch_renorm import BatchRenorm3d as BatchRenorm3d
from renorm.nn.cross_iteration import CrossIterationBatchNorm as CrossIterationBatchNorm
from renorm.nn.cross_iteration import CrossIterationBatchNorm1d as CrossIterationBatchNorm1d
from renorm.nn.cross_iteration import CrossIterationBatchNorm2d as CrossIterationBatchNorm2d
from renorm.nn.cross_iteration import CrossIterationBatchNorm3d as CrossIterationBatchNorm3d
from renorm.nn.cross_iteration import CrossIterationBatchNormAct2d as CrossIterationBatchNormAct2d
from renorm.nn.freezing import freeze as freeze
from renorm.nn.freezing import unfreeze as unfreeze
from renorm.nn.lazy import LazyBatchRenorm1d as LazyBatchRenorm1d
from renorm.nn.lazy import LazyBatchRenorm2d as LazyBatchRenorm2d
from renorm.nn.lazy import LazyBatchRenorm3d as LazyBatchRenorm3d
from renorm.nn.lazy import LazyBatchRenormAct1d as LazyBatchRenormAct1d
from renorm.nn.lazy import LazyBatchRenormAct2d as LazyBatchRenormAct2d
from renorm.nn.lazy import LazyBatchRenormAct3d as LazyBatchRenormAct3d
