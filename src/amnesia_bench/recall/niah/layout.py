"""Names in an artifact of prompts."""

KIND = "niah_prompts"
PROMPTS = "prompts.json"
HAYSTACK = "haystack.txt.gz"  # as much of the joined sentences as some prompt needs
TOKENIZER = "tokenizer_parts.json"  # absent in folders of older versions
PROMPT_SETS = "cells"
