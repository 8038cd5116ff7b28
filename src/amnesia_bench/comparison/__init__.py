"""Compare two evaluations of the same tasks, sample by sample; also those of other tools."""
