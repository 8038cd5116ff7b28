"""Exact measurements of softmax layers, gradients and attention, that explain recall loss."""
