"""What batch normalization does to a model, what is wrong with that, and what helps."""

from renorm.doctor.diagnosis import Diagnosis as Diagnosis
