"""Artifacts on disk: where they lie, how they are published, and how they are proven."""
