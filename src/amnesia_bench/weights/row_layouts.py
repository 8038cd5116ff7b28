"""Map the rows of a projection to heads, for each known layout of q, k, v and the gate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from amnesia_bench.records.roles import HeadRows


@dataclass(frozen=True, kw_only=True)
class Heads:
    """The head counts and sizes of an attention block.

    `query` and `kv` are the numbers of query and KV heads, and `dim` is the head dimension. `inner`
    is the width of the block's input, `hidden` the width of its output; they differ only in zamba
    and zamba2.
    """

    query: int
    kv: int
    dim: int
    inner: int
    hidden: int


RowLayout = Callable[[Heads], HeadRows | None]


def _rows(heads: Heads, count: int, *, start: int = 0, stride: int = 1) -> HeadRows:
    """Return the rows of `count` heads of `heads.dim` rows each; start and stride are in heads."""
    return HeadRows(
        start=start * heads.dim, stride=stride * heads.dim, head_dim=heads.dim, num_heads=count
    )


def per_query_head(heads: Heads) -> HeadRows:
    """Return the rows of a tensor that consists of one block of rows per query head."""
    return _rows(heads, heads.query)


def per_kv_head(heads: Heads) -> HeadRows:
    """Return the rows of a tensor that consists of one block of rows per KV head."""
    return _rows(heads, heads.kv)


def one_row_per_query_head(heads: Heads) -> HeadRows:
    """Return one row per query head, as in a scalar gate, the sinks or a per-head q-norm."""
    return HeadRows(start=0, stride=1, head_dim=1, num_heads=heads.query)


def one_row_per_kv_head(heads: Heads) -> HeadRows:
    """Return one row per KV head, as in a per-head k-norm."""
    return HeadRows(start=0, stride=1, head_dim=1, num_heads=heads.kv)


def whole_tensor(heads: Heads) -> None:
    """Return None: the rows of an output projection or a shared norm do not belong to heads."""


# The q_proj of qwen3_next is [heads, 2 * head_dim, in]: in each head, the rows of q are followed by
# those of the output gate (Qwen3NextAttention.forward in modeling_qwen3_next.py: view, then chunk
# over the last axis).
def gated_query(heads: Heads) -> HeadRows:
    """Return the rows of q in a q_proj in which q and the output gate alternate head by head."""
    return _rows(heads, heads.query, stride=2)


def gated_query_gate(heads: Heads) -> HeadRows:
    """Return the rows of the output gate in a q_proj in which q and the gate alternate."""
    return _rows(heads, heads.query, start=1, stride=2)


# The qkv_proj of phi3 has the rows of all q heads, then of all k heads, then of all v heads.
def fused_query(heads: Heads) -> HeadRows:
    """Return the rows of q in a qkv_proj that stacks q, k and v."""
    return _rows(heads, heads.query)


def fused_key(heads: Heads) -> HeadRows:
    """Return the rows of k in a qkv_proj that stacks q, k and v."""
    return _rows(heads, heads.kv, start=heads.query)


def fused_value(heads: Heads) -> HeadRows:
    """Return the rows of v in a qkv_proj that stacks q, k and v."""
    return _rows(heads, heads.kv, start=heads.query + heads.kv)


# The query_key_value of gpt_neox has q, k and v of the first head, then of the second, and so on.
def interleaved_query(heads: Heads) -> HeadRows:
    """Return the rows of q in a query_key_value that stores q, k and v head by head."""
    return _rows(heads, heads.query, stride=3)


def interleaved_key(heads: Heads) -> HeadRows:
    """Return the rows of k in a query_key_value that stores q, k and v head by head."""
    return _rows(heads, heads.kv, start=1, stride=3)


def interleaved_value(heads: Heads) -> HeadRows:
    """Return the rows of v in a query_key_value that stores q, k and v head by head."""
    return _rows(heads, heads.kv, start=2, stride=3)
