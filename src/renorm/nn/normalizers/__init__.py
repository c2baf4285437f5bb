"""Normalizers of other papers, for comparison, and all there are by name.

Each layer is one formula, in torch's own operations. ``renorm.normalizer`` makes any of them.
"""

from renorm.nn.normalizers.blocks import block as block
from renorm.nn.normalizers.evonorm_b0 import EvoNormB0 as EvoNormB0
from renorm.nn.normalizers.evonorm_s0 import EvoNormS0 as EvoNormS0
from renorm.nn.normalizers.factory import Entry as Entry
from renorm.nn.normalizers.factory import normalizer as normalizer
from renorm.nn.normalizers.factory import normalizers as normalizers
from renorm.nn.normalizers.filter_response_norm import FilterResponseNorm as FilterResponseNorm
from renorm.nn.normalizers.lp_batch_norm import LpBatchNorm as LpBatchNorm
from renorm.nn.normalizers.noisy_batch_norm import NoisyBatchNorm as NoisyBatchNorm
from renorm.nn.normalizers.variance_norm import VarianceNorm as VarianceNorm
from renorm.nn.normalizers.weights import ScaledWeightStandardization as ScaledWeightStandardization
from renorm.nn.normalizers.weights import WeightBased as WeightBased
from renorm.nn.normalizers.weights import WeightNorm as WeightNorm
