"""Training: three HALO stages, SFT and QK-Frozen in one loop that resumes to the bit."""
