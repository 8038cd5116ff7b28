"""Measure what some restore rules need to know about two checkpoints: losses, Fisher values."""
