"""From a Qwen3 teacher to the checkpoints that HypeNet's training starts from."""
