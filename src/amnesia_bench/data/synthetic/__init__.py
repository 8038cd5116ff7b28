"""Data from seeded generators, for training on a laptop without downloading datasets."""
