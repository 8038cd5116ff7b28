"""Training: three HALO stages, SFT and QK-Frozen in one loop with bit-exact resume."""
