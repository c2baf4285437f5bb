"""What normalization does to a model in training: it is looked at, and never changed."""

from renorm.measure.monitoring import Log as Log
from renorm.measure.monitoring import Monitor as Monitor
from renorm.measure.observation import Observation as Observation
from renorm.measure.schedules import Schedule as Schedule
from renorm.measure.schedules import schedule as schedule
from renorm.measure.surveying import survey as survey
