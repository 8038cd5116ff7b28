"""Run real training steps on tensors without data: peak memory, collectives and FLOPs, no GPU."""
