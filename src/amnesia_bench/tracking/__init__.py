"""Track a training run: in a metrics file on disk, on W&B, and on the terminal."""
