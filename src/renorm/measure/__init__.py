"""What normalization does to a model in training: it is looked at, and never changed.

``Monitor`` looks at a training under way; ``survey`` runs a model on some batches, and measures
what ``QUANTITIES`` has. ``landscape``, ``covariate_shift`` and ``gradient_reduction`` look at the
loss of a model and its gradients on one batch. ``propagation`` follows signals and gradients
through a model, fresh or trained, and ``measure.closed_forms`` has what is known of them
beforehand; ``predict`` ranks normalizers. ``measure.records`` are what is found,
``measure.saving`` keeps them.
"""

from renorm.measure import closed_forms as closed_forms
from renorm.measure import records as records
from renorm.measure import saving as saving
from renorm.measure.internal_shift import covariate_shift as covariate_shift
from renorm.measure.monitoring import Log as Log
from renorm.measure.monitoring import Monitor as Monitor
from renorm.measure.observation import Observation as Observation
from renorm.measure.predicting import predict as predict
from renorm.measure.prediction import Prediction as Prediction
from renorm.measure.propagated import Propagation as Propagation
from renorm.measure.propagated import Site as Site
from renorm.measure.propagating import propagation as propagation
from renorm.measure.quantities import QUANTITIES as QUANTITIES
from renorm.measure.records import Survey as Survey
from renorm.measure.reduction import gradient_reduction as gradient_reduction
from renorm.measure.schedules import Schedule as Schedule
from renorm.measure.schedules import schedule as schedule
from renorm.measure.smoothness import landscape as landscape
from renorm.measure.smoothness import step_range as step_range
from renorm.measure.surveying import survey as survey
