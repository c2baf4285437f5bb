"""The papers' equations in float64 NumPy: the oracle of tests and benchmarks.

Readable in one sitting and slow on purpose. Arrays are (m, C): m values in C channels; a feature
map (N, C, *spatial) is brought to that shape by ``as_rows`` and back by ``as_maps``, and the input
of a convolution to its patches by ``as_patches``. Normalizers with statistics of single examples
take (N, C, P): P positions.
"""

from renorm.reference.cross_iteration_2020 import CrossIterationState as CrossIterationState
from renorm.reference.cross_iteration_2020 import CrossIterationStep as CrossIterationStep
from renorm.reference.cross_iteration_2020 import Iteration as Iteration
from renorm.reference.cross_iteration_2020 import cross_iteration_norm as cross_iteration_norm
from renorm.reference.cross_iteration_2020 import (
    cross_iteration_norm_backward as cross_iteration_norm_backward,
)
from renorm.reference.cross_iteration_2020 import cross_iteration_step as cross_iteration_step
from renorm.reference.cross_iteration_2020 import exact as exact
from renorm.reference.cross_iteration_2020 import first_order as first_order
from renorm.reference.cross_iteration_2020 import observe as observe
from renorm.reference.cross_iteration_2020 import recomputed as recomputed
from renorm.reference.cross_iteration_2020 import window_statistics as window_statistics
from renorm.reference.cross_iteration_centred import centred_exact as centred_exact
from renorm.reference.cross_iteration_centred import centred_first_order as centred_first_order
from renorm.reference.cross_iteration_centred import centred_recomputed as centred_recomputed
from renorm.reference.cross_iteration_centred import centred_variance as centred_variance
from renorm.reference.cross_iteration_centred import centred_window as centred_window
from renorm.reference.evonorm_2020 import evonorm_b0 as evonorm_b0
from renorm.reference.evonorm_2020 import evonorm_b0_backward as evonorm_b0_backward
from renorm.reference.evonorm_2020 import evonorm_b0_inference as evonorm_b0_inference
from renorm.reference.evonorm_2020 import evonorm_s0 as evonorm_s0
from renorm.reference.evonorm_2020 import evonorm_s0_backward as evonorm_s0_backward
from renorm.reference.filter_response_2020 import filter_response_norm as filter_response_norm
from renorm.reference.filter_response_2020 import (
    filter_response_norm_backward as filter_response_norm_backward,
)
from renorm.reference.normalization_2015 import batch_norm as batch_norm
from renorm.reference.normalization_2015 import batch_norm_backward as batch_norm_backward
from renorm.reference.normalization_2015 import inference as inference
from renorm.reference.normalization_2015 import population as population
from renorm.reference.normalization_2018 import LpNormalized as LpNormalized
from renorm.reference.normalization_2018 import lp_batch_norm as lp_batch_norm
from renorm.reference.normalization_2018 import lp_batch_norm_backward as lp_batch_norm_backward
from renorm.reference.normalization_2018 import noisy_batch_norm as noisy_batch_norm
from renorm.reference.normalization_2018 import (
    noisy_batch_norm_backward as noisy_batch_norm_backward,
)
from renorm.reference.patches import as_patches as as_patches
from renorm.reference.patches import linear as linear
from renorm.reference.patches import linear_backward as linear_backward
from renorm.reference.renormalization_2017 import Renormalized as Renormalized
from renorm.reference.renormalization_2017 import batch_renorm as batch_renorm
from renorm.reference.renormalization_2017 import batch_renorm_backward as batch_renorm_backward
from renorm.reference.renormalization_moving import GradientAverages as GradientAverages
from renorm.reference.renormalization_moving import MovingBackward as MovingBackward
from renorm.reference.renormalization_moving import (
    batch_renorm_moving_backward as batch_renorm_moving_backward,
)
from renorm.reference.shapes import as_maps as as_maps
from renorm.reference.shapes import as_rows as as_rows
from renorm.reference.variance_2021 import variance_norm as variance_norm
from renorm.reference.variance_2021 import variance_norm_backward as variance_norm_backward
from renorm.reference.weights_2021 import corrected_relu as corrected_relu
from renorm.reference.weights_2021 import corrected_relu_backward as corrected_relu_backward
from renorm.reference.weights_2021 import (
    scaled_weight_standardization as scaled_weight_standardization,
)
from renorm.reference.weights_2021 import (
    scaled_weight_standardization_backward as scaled_weight_standardization_backward,
)
from renorm.reference.weights_2021 import weight_norm as weight_norm
from renorm.reference.weights_2021 import weight_norm_backward as weight_norm_backward
