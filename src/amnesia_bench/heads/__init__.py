"""Rank attention heads by what they retrieve, and compare the ranking with a fine-tune's drift."""
