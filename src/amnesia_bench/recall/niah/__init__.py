"""NIAH (niah_single_1/2/3): the prompts of lm-evaluation-harness, built once and stored."""

from amnesia_bench.recall.niah.build import build_prompts
from amnesia_bench.recall.niah.prompt_sets import NiahPromptSet, open_prompt_sets
from amnesia_bench.recall.niah.tasks import NIAH_SAMPLING, TASKS

__all__ = [
    "NIAH_SAMPLING",
    "TASKS",
    "NiahPromptSet",
    "build_prompts",
    "open_prompt_sets",
]
