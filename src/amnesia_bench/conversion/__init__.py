"""Create the checkpoints from which training starts: HypeNet students and random models."""
