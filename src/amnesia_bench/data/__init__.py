"""Training data: prepared once, read by memory map, in an order that has no state."""

from amnesia_bench.data.order import SampleOrder
from amnesia_bench.data.sequence_store import PackedSequence, SequenceStore, open_store

__all__ = ["PackedSequence", "SampleOrder", "SequenceStore", "open_store"]
