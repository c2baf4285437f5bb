"""Tasks: what is trained and how it is judged, those of the package and a user's own."""

from renorm.lab.tasks.base import Metric as Metric
from renorm.lab.tasks.base import Outcome as Outcome
from renorm.lab.tasks.base import Plan as Plan
from renorm.lab.tasks.base import Task as Task
from renorm.lab.tasks.registry import TASKS as TASKS
from renorm.lab.tasks.registry import Entry as Entry
from renorm.lab.tasks.registry import Reference as Reference
from renorm.lab.tasks.registry import find as find
from renorm.lab.tasks.supervised import Supervised as Supervised
