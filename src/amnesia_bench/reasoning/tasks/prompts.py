"""Wording that several tasks share."""

from __future__ import annotations

# Qwen2.5-Math's and Qwen3's; open-r1 says the same before the problem. The paper names none.
STEP_BY_STEP = "Please reason step by step, and put your final answer within \\boxed{}."


def step_by_step(problem: str) -> str:
    """Return a problem with the request to reason and to box the answer."""
    return f"{problem}\n{STEP_BY_STEP}"
