"""Prepare training data once, then read it memory-mapped, in an order without state."""

from amnesia_bench.data.order import SampleOrder
from amnesia_bench.data.sequence_store import PackedSequence, SequenceStore, open_store

__all__ = ["PackedSequence", "SampleOrder", "SequenceStore", "open_store"]
