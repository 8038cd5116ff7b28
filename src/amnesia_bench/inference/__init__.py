"""Inference engines for transformers and vLLM that share one interface."""
