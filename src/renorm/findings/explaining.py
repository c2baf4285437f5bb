"""Findings that explain others: causes come before what follows from them."""

from collections.abc import Sequence
from dataclasses import replace

from renorm.findings.finding import SEVERITIES, Finding

# limits that are open have training itself go by statistics that are off, and those of layers in
# eval mode stay as they are while the weights move
_OF_STATISTICS = (
    "non_finite",
    "never_updated",
    "mixed_modes",
    "momentum_convention",
    "dependent_batches",
    "limits_open_early",
)
# a finding, and what may make it where both are there
CAUSES = {
    "stale_statistics": _OF_STATISTICS,
    "shifted_domain": _OF_STATISTICS,
    "small_batch": ("single_value", "dependent_batches", "accumulation"),
    "batch_leak": ("single_value", "dependent_batches", "small_batch"),
    "composition_overfit": ("dependent_batches",),
    "never_updated": ("non_finite",),
    "momentum_convention": ("non_finite",),
    "mixed_modes": ("train_mode_export",),
}
_BELOW = 0.9


def explained(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Findings with causes raised to the severity and weight of what follows from them.

    What follows stays a finding, just below its cause: it has figures of its own. A cause that is
    a note explains nothing.
    """
    found = list(findings)
    for name, causes in CAUSES.items():
        for i, one in enumerate(found):
            if one.id == name:
                j = _first_cause(found, causes)
                if j is not None:
                    found[j], found[i] = _ordered(found[j], one)
    return tuple(found)


def _first_cause(found: Sequence[Finding], causes: Sequence[str]) -> int | None:
    there = [
        (causes.index(one.id), j)
        for j, one in enumerate(found)
        if one.id in causes and one.severity != "note"
    ]
    return min(there)[1] if there else None


def _ordered(cause: Finding, effect: Finding) -> tuple[Finding, Finding]:
    severity = min(cause.severity, effect.severity, key=SEVERITIES.index)
    weight = max(cause.weight, effect.weight) if effect.severity == severity else cause.weight
    raised = replace(cause, severity=severity, weight=weight)
    return raised, replace(effect, weight=min(effect.weight, _BELOW * weight))
