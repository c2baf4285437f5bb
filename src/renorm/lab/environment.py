"""Where a figure of the lab comes from, as every record says it."""

from renorm.environment import OPTIONAL as OPTIONAL
from renorm.environment import commit as commit
from renorm.environment import describe as describe
from renorm.environment import installed as installed
