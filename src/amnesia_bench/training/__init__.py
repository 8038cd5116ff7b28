"""Training: one loop with bit-exact resume for the three HALO stages, SFT and QK-Frozen."""
