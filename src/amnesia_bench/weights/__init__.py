"""Read checkpoints without building a model: safetensors bytes, config, tensor roles."""
