"""Artifacts on disk: their paths, how they are published, and how they are verified."""
