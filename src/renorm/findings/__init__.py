"""What records of a survey say is wrong with a model; pure functions, without torch."""

from renorm.findings.finding import SEVERITIES as SEVERITIES
from renorm.findings.finding import Figure as Figure
from renorm.findings.finding import Finding as Finding
from renorm.findings.judging import judge as judge
