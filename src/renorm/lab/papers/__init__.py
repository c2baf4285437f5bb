"""Studies of the papers, by name: their runs at several scales, and their claims."""

from renorm.lab.papers import (
    batch_norm,
    batch_renorm,
    beyond_batchnorm,
    cross_iteration,
    moving_backward,
    smoothness,
)
from renorm.lab.papers.study import SCALES as SCALES
from renorm.lab.papers.study import Study as Study

_STUDIES = (
    batch_norm.STUDY,
    batch_renorm.STUDY,
    cross_iteration.STUDY,
    smoothness.STUDY,
    beyond_batchnorm.STUDY,
    moving_backward.STUDY,
)
STUDIES = {study.name: study for study in _STUDIES}
