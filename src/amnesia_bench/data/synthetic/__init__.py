"""Data made on the spot by seeded generators: what a laptop trains on in place of downloads."""
