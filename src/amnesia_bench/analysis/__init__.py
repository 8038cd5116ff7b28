"""Exact measurements of attention and gradients in softmax layers, to explain lost recall."""
