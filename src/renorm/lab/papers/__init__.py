"""Studies of the papers, by name: their runs at several scales, and their claims."""

from renorm.lab.papers import batch_norm, batch_renorm, cross_iteration, moving_backward
from renorm.lab.papers.study import SCALES as SCALES
from renorm.lab.papers.study import Study as Study

STUDIES = {
    study.name: study
    for study in (
        batch_norm.STUDY,
        batch_renorm.STUDY,
        cross_iteration.STUDY,
        moving_backward.STUDY,
    )
}
