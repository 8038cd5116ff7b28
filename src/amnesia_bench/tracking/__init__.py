"""What a run says while it goes: its record on disk, W&B, and a line for whoever watches."""
