"""Make the checkpoints that HypeNet training starts from, out of a Qwen3 teacher."""
