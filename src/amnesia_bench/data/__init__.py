"""Training data: prepared once, memory-mapped, and sampled in a stateless order."""

from amnesia_bench.data.order import SampleOrder
from amnesia_bench.data.sequence_store import PackedSequence, SequenceStore, open_store

__all__ = ["PackedSequence", "SampleOrder", "SequenceStore", "open_store"]
