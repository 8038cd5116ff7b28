"""Artifacts on disk: define their paths, publish them atomically, and verify them."""
