"""Names in an artifact of prompts."""

KIND = "niah_prompts"
PROMPTS = "prompts.json"
HAYSTACK = "haystack.txt.gz"  # as much of the joined sentences as some prompt needs
TOKENIZER = "tokenizer_parts.json"  # absent in folders of older versions
PROMPT_SETS = "cells"


def prompt_set_name(task: str, context_tokens: int) -> str:
    """Return the name of a prompt set, which is also that of its task in samples' keys."""
    return f"{task}@{context_tokens}"
