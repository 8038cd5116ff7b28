"""NIAH and RULER: build the prompts of lm-evaluation-harness once, and store them."""

from amnesia_bench.recall.niah.build import build_prompts
from amnesia_bench.recall.niah.catalogue import TASKS
from amnesia_bench.recall.niah.prompt_sets import NiahPromptSet, open_prompt_sets
from amnesia_bench.recall.niah.tasks import NIAH_SAMPLING

__all__ = [
    "NIAH_SAMPLING",
    "TASKS",
    "NiahPromptSet",
    "build_prompts",
    "open_prompt_sets",
]
