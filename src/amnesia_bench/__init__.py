"""amnesia_bench: did a fine-tune make a hybrid LLM forget how to look far back? Repair it."""

__version__ = "0.1.0"
