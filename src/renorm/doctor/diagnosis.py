"""A diagnosis: what was measured, and what is wrong."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from renorm.doctor import saving
from renorm.environment import describe
from renorm.findings import Finding
from renorm.findings.text import render
from renorm.measure.records import FixTrial, Record, Survey


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """What was measured of a model, and the findings, the worst first.

    ``str()`` and ``repr()`` of it are a table that fits a screen.

    Args:
        survey: all that was measured.
        findings: what it says is wrong; ``renorm.findings.judge`` of the survey.
        environment: versions and platform that it was measured with.
    """

    survey: Survey
    findings: tuple[Finding, ...]
    environment: Mapping[str, str | None] = field(default_factory=lambda: dict(describe()))

    @property
    def records(self) -> tuple[Record, ...]:
        """All that was measured, a record a layer and quantity."""
        return self.survey.records

    @property
    def trials(self) -> tuple[FixTrial, ...]:
        """The fixes that were tried, in the order they were; empty if none were."""
        return self.survey.of(FixTrial)

    @property
    def worst(self) -> str | None:
        """The severity of the worst finding; None if there is none."""
        return self.findings[0].severity if self.findings else None

    def to_json(self, path: str | Path) -> None:
        """Write all of it to a file: JSON lines, which ``load`` reads.

        The head of the survey comes first, then a line a record, a line a finding, and one with
        versions and platform; each names its ``kind``.

        Raises:
            ArgumentError: the file cannot be written.
        """
        saving.save(path, self.survey, self.findings, self.environment)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read one from a file, and judge its records again by the rules of this version.

        Raises:
            RecordError: it does not hold a diagnosis.
        """
        survey, findings, environment = saving.read(path)
        return cls(survey, findings, environment)

    def to_html(self, path: str | Path, *, command: str = "") -> None:
        """Write one page with all of it, which needs no network.

        Args:
            path: of the page; there is no need for it to end in .html.
            command: what makes the page again, shown on it; empty for none.

        Raises:
            RecordError: the file cannot be written.
            MissingExtraError: what draws the page is not installed.
        """
        from renorm.report import diagnosis_page  # plotly and jinja2, which the rest needs not

        diagnosis_page.write(Path(path), self.survey, self.findings, command, self.environment)

    def __str__(self) -> str:
        return render(self.survey, self.findings)

    __repr__ = __str__
