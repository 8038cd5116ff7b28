"""Load and identify tokenizers, add special tokens, apply chat templates and split sentences."""
