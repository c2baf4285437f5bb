"""The rules, one subject a file: each takes a survey and yields findings."""

from collections.abc import Callable, Iterator

from renorm.findings.finding import Finding
from renorm.measure.records import Survey

Rule = Callable[[Survey], Iterator[Finding]]

RULES: tuple[Rule, ...] = ()
