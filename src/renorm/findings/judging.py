"""From the records of a survey to findings, the worst first."""

from renorm.findings.explaining import explained
from renorm.findings.finding import SEVERITIES, Finding
from renorm.findings.rules import RULES
from renorm.measure.records import Survey


def judge(survey: Survey) -> tuple[Finding, ...]:
    """What the records of a survey say is wrong, the worst first.

    A pure function of the records: a survey that was saved can be judged again.

    Args:
        survey: of ``renorm.measure.survey``, or read by ``renorm.measure.saving.load``.

    Returns:
        By severity, then by how far each is beyond its threshold; what follows from another
        finding behind that one. Empty for a healthy model.
    """
    findings = explained([finding for rule in RULES for finding in rule(survey)])
    return tuple(sorted(findings, key=lambda one: (SEVERITIES.index(one.severity), -one.weight)))
