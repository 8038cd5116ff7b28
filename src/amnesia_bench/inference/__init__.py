"""Inference engines behind one protocol: transformers and vLLM."""
