"""Search the best trade-off of recall against reasoning between two checkpoints: `amnesia tune`."""
