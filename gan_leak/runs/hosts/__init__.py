"""Processes, workers, signals and compiled programs."""
