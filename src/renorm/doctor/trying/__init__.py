"""Trying what could help a model: some steps of training with each fix, judged in eval mode."""

from renorm.doctor.trying.fixes import DEFAULT as DEFAULT
from renorm.doctor.trying.fixes import FIXES as FIXES
from renorm.doctor.trying.fixes import named as named
from renorm.doctor.trying.procedure import try_fixes as try_fixes
from renorm.doctor.trying.trials import AS_IT_IS as AS_IT_IS
from renorm.doctor.trying.trials import FURTHER as FURTHER
from renorm.doctor.trying.trials import Trials as Trials
from renorm.doctor.trying.trials import gain as gain
