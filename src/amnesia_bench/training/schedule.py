"""The learning rate as a pure function of the step, so a checkpoint need not contain it."""

from __future__ import annotations

import math

from amnesia_bench.config.train_schema import Optimizer


def learning_rate(step: int, steps: int, optimizer: Optimizer) -> float:
    """Return the learning rate of `step` (the first is 1) in a run of `steps` updates.

    Linear warmup from 0 to the peak over `warmup_steps` updates, so the first update changes
    nothing; then half a cosine, which would reach the floor one update after the last. Source:
    the authors' code (thunlp/hybrid-linear-attention @229e301).
    """
    done, warmup = step - 1, optimizer.warmup_steps
    peak, floor = optimizer.learning_rate, optimizer.min_learning_rate
    if done < warmup:
        return peak * done / warmup
    progress = (done - warmup) / (steps - warmup)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))
