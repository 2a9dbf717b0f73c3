"""Run of the collaboration: setup, training, measurement, sweeps."""
