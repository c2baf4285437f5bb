"""The rules, one subject a file: each takes a survey and yields findings."""

from collections.abc import Callable, Iterator

from renorm.findings.finding import Finding
from renorm.findings.rules.channels import dead_channels, eps_dominated, saturated_channels
from renorm.findings.rules.dependence import dependent_batches
from renorm.findings.rules.modes import mixed_modes, train_mode_export
from renorm.findings.rules.momentum import momentum_convention
from renorm.findings.rules.non_finite import non_finite
from renorm.findings.rules.redundant_bias import redundant_bias
from renorm.findings.rules.reliance import batch_leak, composition_overfit
from renorm.findings.rules.schedule import limits_never_open, limits_open_early
from renorm.findings.rules.single_value import single_value
from renorm.findings.rules.small_batch import small_batch
from renorm.findings.rules.staleness import stale_statistics
from renorm.findings.rules.surroundings import accumulation, norm_lost, ranks_differ
from renorm.findings.rules.tiles import tile_artifacts
from renorm.findings.rules.updates import never_updated
from renorm.measure.records import Survey

Rule = Callable[[Survey], Iterator[Finding]]

RULES: tuple[Rule, ...] = (
    non_finite,
    train_mode_export,
    norm_lost,
    never_updated,
    momentum_convention,
    single_value,
    dependent_batches,
    accumulation,
    small_batch,
    stale_statistics,  # and shifted_domain
    composition_overfit,
    batch_leak,
    ranks_differ,
    limits_open_early,
    limits_never_open,
    mixed_modes,
    tile_artifacts,
    dead_channels,
    eps_dominated,
    saturated_channels,
    redundant_bias,
)
