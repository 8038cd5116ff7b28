"""Map the rows of a projection to heads, for every way of fusing q, k, v and the gate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from amnesia_bench.records.roles import HeadRows


@dataclass(frozen=True, kw_only=True)
class Heads:
    """The sizes of one attention block.

    `inner` is the width of its input, `hidden` that of its output. Only in zamba and zamba2 do
    they differ.
    """

    query: int
    kv: int
    dim: int
    inner: int
    hidden: int


RowLayout = Callable[[Heads], HeadRows | None]


def _rows(heads: Heads, count: int, *, start: int = 0, stride: int = 1) -> HeadRows:
    """Return `count` heads of `heads.dim` rows; start and stride are counted in heads."""
    return HeadRows(
        start=start * heads.dim, stride=stride * heads.dim, head_dim=heads.dim, num_heads=count
    )


def per_query_head(heads: Heads) -> HeadRows:
    """Return one block of rows per query head, in order."""
    return _rows(heads, heads.query)


def per_kv_head(heads: Heads) -> HeadRows:
    """Return one block of rows per key/value head, in order."""
    return _rows(heads, heads.kv)


def one_row_per_query_head(heads: Heads) -> HeadRows:
    """Return one row per query head: a scalar gate, a sink, a norm's weights."""
    return HeadRows(start=0, stride=1, head_dim=1, num_heads=heads.query)


def one_row_per_kv_head(heads: Heads) -> HeadRows:
    """Return one row per key/value head: a norm's weights."""
    return HeadRows(start=0, stride=1, head_dim=1, num_heads=heads.kv)


def whole_tensor(heads: Heads) -> None:
    """Return None, for a tensor without rows per head: an output projection or a shared norm."""


# q_proj of qwen3_next is [heads, 2 * head_dim, in]: q and the output gate of head h alternate
# (modeling_qwen3_next.py, Qwen3NextAttention.forward: view, then chunk over the last axis).
def gated_query(heads: Heads) -> HeadRows:
    """Return the query half of each head of a q_proj that is interleaved with the output gate."""
    return _rows(heads, heads.query, stride=2)


def gated_query_gate(heads: Heads) -> HeadRows:
    """Return the gate half of each head of the same q_proj."""
    return _rows(heads, heads.query, start=1, stride=2)


# phi3: all q heads, then all k heads, then all v heads.
def fused_query(heads: Heads) -> HeadRows:
    """Return the q rows of a qkv_proj that stacks q, k and v."""
    return _rows(heads, heads.query)


def fused_key(heads: Heads) -> HeadRows:
    """Return the k rows of a qkv_proj that stacks q, k and v."""
    return _rows(heads, heads.kv, start=heads.query)


def fused_value(heads: Heads) -> HeadRows:
    """Return the v rows of a qkv_proj that stacks q, k and v."""
    return _rows(heads, heads.kv, start=heads.query + heads.kv)


# gpt_neox: q, k and v of the first head, then of the second, and so on.
def interleaved_query(heads: Heads) -> HeadRows:
    """Return the q rows of a query_key_value that stores q, k, v head by head."""
    return _rows(heads, heads.query, stride=3)


def interleaved_key(heads: Heads) -> HeadRows:
    """Return the k rows of a query_key_value that stores q, k, v head by head."""
    return _rows(heads, heads.kv, start=1, stride=3)


def interleaved_value(heads: Heads) -> HeadRows:
    """Return the v rows of a query_key_value that stores q, k, v head by head."""
    return _rows(heads, heads.kv, start=2, stride=3)
