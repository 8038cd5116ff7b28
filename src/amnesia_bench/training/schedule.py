"""The learning rate as a pure function of the step, so that checkpoints need not contain it."""

from __future__ import annotations

import math

from amnesia_bench.config.train_schema import Optimizer


def learning_rate(step: int, steps: int, optimizer: Optimizer) -> float:
    """Return the learning rate of step number `step`, from 1 to `steps`.

    The rate rises linearly from 0 to the peak during the first `warmup_steps` steps, so the first
    step changes nothing. Then it follows half a cosine, which would reach the floor one step after
    the last. Source: the authors' code (thunlp/hybrid-linear-attention @229e301).
    """
    done, warmup = step - 1, optimizer.warmup_steps
    peak, floor = optimizer.learning_rate, optimizer.min_learning_rate
    if done < warmup:
        return peak * done / warmup
    progress = (done - warmup) / (steps - warmup)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))
