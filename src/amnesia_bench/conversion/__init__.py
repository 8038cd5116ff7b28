"""From a Qwen3 teacher to the checkpoints that HypeNet's training starts from."""

from amnesia_bench.conversion.conversion import Conversion, convert

__all__ = ["Conversion", "convert"]
