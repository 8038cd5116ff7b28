"""Tracking of a training run: the metrics file on disk, W&B, and progress on the terminal."""
