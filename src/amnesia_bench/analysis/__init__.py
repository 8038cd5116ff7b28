"""Exact measurements of attention and gradients in softmax layers, to explain lost recall."""

# Defaults of `amnesia analyze`: tokens per text, and the largest distance that is measured.
TOKENS, MAX_DISTANCE = 1024, 512
