"""A diagnosis: what was measured, and what is wrong."""

from dataclasses import dataclass

from renorm.findings import Finding
from renorm.measure.records import FixTrial, Record, Survey


@dataclass(frozen=True)
class Diagnosis:
    """What was measured of a model, and the findings, the worst first.

    Args:
        survey: all that was measured.
        findings: what it says is wrong; ``renorm.findings.judge`` of the survey.
    """

    survey: Survey
    findings: tuple[Finding, ...]

    @property
    def records(self) -> tuple[Record, ...]:
        """All that was measured, a record a layer and quantity."""
        return self.survey.records

    @property
    def trials(self) -> tuple[FixTrial, ...]:
        """The fixes that were tried, in the order they were; empty if none were."""
        return self.survey.of(FixTrial)
