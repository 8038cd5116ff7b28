"""What `estimate` and `dry_run` assume about data and machines, which they do not see."""

from __future__ import annotations

# Where documents are isolated, `estimate` and `dry_run` assume sequences of this many documents of
# equal length, since they see no data.
DOCUMENTS_PER_SEQUENCE = 4

# A node of a cluster with NVIDIA's SXM modules has this many GPUs.
_GPUS_PER_NODE = 8


def processes_per_node(processes: int) -> int:
    """Return the number of processes per node that `estimate` and `dry_run` assume.

    Nodes have at most 8 GPUs, and all have the same number of processes.
    """
    return max(n for n in range(1, _GPUS_PER_NODE + 1) if processes % n == 0)
