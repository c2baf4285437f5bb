"""What batch normalization does to a model, what is wrong with that, and what helps.

``diagnose`` (also ``renorm.diagnose``) gives a ``Diagnosis``; ``load`` reads one that was saved.
A ``Case`` is what ``renorm doctor`` asks a function of yours for.
"""

from renorm.doctor.case import Case as Case
from renorm.doctor.diagnosing import diagnose as diagnose
from renorm.doctor.diagnosis import Diagnosis as Diagnosis

load = Diagnosis.load
