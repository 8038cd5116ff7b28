"""Data from seeded generators, which a laptop trains on instead of downloads."""
