"""Which prompts are answered in one batch, in the order of the walk through their prefixes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from amnesia_bench.inference.prefix_tree import PrefixNode

# A step of 64 rows of a small model takes little more than one of a single row, and answers come
# out, and are kept, every so often. It also bounds the states of linear layers, which take the
# same memory however short a prompt is.
MOST_ROWS = 64


@dataclass(frozen=True)
class Leaf:
    """A prompt as a place in the tree: what is kept of a request until it is asked for again.

    `index` is that of the request, `node` that of the cut where it leaves the common text.
    """

    index: int
    node: int
    num_tokens: int
    max_new_tokens: int

    @property
    def reading(self) -> tuple[int, int]:
        """Prompts for which this is equal can be read together."""
        return self.node, self.num_tokens


def leaves_of(nodes: Sequence[PrefixNode], sizes: Sequence[tuple[int, int]]) -> list[Leaf]:
    """Return all prompts in the order of the walk, those that can be read together as neighbours.

    Args:
        nodes: the tree.
        sizes: tokens of each prompt, and of its longest answer.
    """
    found = [Leaf(i, n, *sizes[i]) for n, node in enumerate(nodes) for i in node.leaves]
    return sorted(found, key=lambda leaf: leaf.reading)


@dataclass(frozen=True)
class BatchLimits:
    """What a batch may be.

    `tokens` bounds rows times columns (one row alone may be longer), `columns` the tokens of the
    longest prompt and of the longest answer, None for no limit. `unequal` is whether rows may be
    padded; else all are read together.
    """

    tokens: int
    columns: int | None
    unequal: bool


def first_batch(leaves: Sequence[Leaf], limits: BatchLimits) -> list[Leaf]:
    """Return the leaves at the front that go into one batch: at least one."""
    batch = list(leaves[:1])
    for leaf in leaves[1:MOST_ROWS]:
        columns = max_row_tokens([*batch, leaf])
        too_wide = limits.columns is not None and columns > limits.columns
        if too_wide or (len(batch) + 1) * columns > limits.tokens:
            break
        if not limits.unequal and leaf.reading != batch[0].reading:
            break
        batch.append(leaf)
    return batch


def max_row_tokens(batch: Sequence[Leaf]) -> int:
    """Return the most tokens that a row may get to, padding included."""
    return max(leaf.num_tokens for leaf in batch) + max(leaf.max_new_tokens for leaf in batch)
