"""Population statistics for the normalization layers of a trained model."""

from renorm.calibration.procedure import calibrate as calibrate
