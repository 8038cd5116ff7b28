"""What answers prompts: transformers, vLLM, or a fake for tests, behind one protocol."""
