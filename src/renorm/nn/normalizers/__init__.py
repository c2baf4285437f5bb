"""Normalizers of other papers, for comparison: each is one formula, in torch's own operations."""

from renorm.nn.normalizers.evonorm_b0 import EvoNormB0 as EvoNormB0
from renorm.nn.normalizers.evonorm_s0 import EvoNormS0 as EvoNormS0
from renorm.nn.normalizers.filter_response_norm import FilterResponseNorm as FilterResponseNorm
from renorm.nn.normalizers.lp_batch_norm import LpBatchNorm as LpBatchNorm
from renorm.nn.normalizers.noisy_batch_norm import NoisyBatchNorm as NoisyBatchNorm
from renorm.nn.normalizers.variance_norm import VarianceNorm as VarianceNorm
