"""Run directories, checkpoints and their integrity."""
