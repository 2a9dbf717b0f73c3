"""The host side of a run: its directory, checkpoints, progress and the training loop."""
