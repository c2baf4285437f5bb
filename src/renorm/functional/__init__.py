"""Normalization as pure functions: checked arguments in, output and new statistics out."""

from renorm.functional.cross_iteration import (
    cross_iteration_batch_norm as cross_iteration_batch_norm,
)
from renorm.functional.renormalization import apply as apply
from renorm.functional.renormalization import batch_renorm as batch_renorm
from renorm.functional.renormalization import check as check
from renorm.functional.renormalization import check_mask as check_mask
from renorm.functional.renormalization import check_residual as check_residual
from renorm.functional.renormalization import check_settings as check_settings
from renorm.functional.renormalization import stored as stored
