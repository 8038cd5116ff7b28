"""Tokenizers: loading, identity, special tokens and the chat format."""
