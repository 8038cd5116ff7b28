"""Runs the decoding kernel of the vLLM plugin on a CPU, in Triton's interpreter.

Run as a program, in a process of its own, since Triton decides to interpret when it is imported:
TRITON_INTERPRET=1 python -m tests.support.decode_interpreter < CASES > ERRORS. Both are JSON: a
list of the arguments of `decode_case`, and for each of them the largest differences from PyTorch.
"""

import json
import sys

import torch

from amnesia_bench.modeling.lightning_attention import alibi_log_decay
from amnesia_bench.vllm_plugin.lightning_decode import DecodeInputs, torch_decode, triton_decode

SLOTS = 7
SCALE = 0.3


def decode_case(
    *, heads: int, groups: int, key_dim: int, slots: list[int], first: list[bool]
) -> tuple[DecodeInputs, torch.Tensor]:
    """Return the operands, whose q, k and v are slices of one tensor, and a cache."""
    generator = torch.Generator().manual_seed(0)
    sizes = [n * key_dim for n in (heads, groups, groups)]
    rows = torch.randn(len(slots), sum(sizes), generator=generator)
    q, k, v = (part.unflatten(-1, (-1, key_dim)) for part in rows.split(sizes, dim=-1))
    # As in vLLM, slots are a column of a wider table.
    table = torch.tensor([[slot, 99] for slot in slots], dtype=torch.int32)
    inputs = DecodeInputs(q, k, v, alibi_log_decay(heads), table[:, 0], torch.tensor(first))
    return inputs, torch.randn(SLOTS, heads, key_dim, key_dim, generator=generator)


def main() -> None:
    errors = []
    for case in json.load(sys.stdin):
        inputs, cache = decode_case(**case)
        ours, theirs = cache.clone(), cache.clone()
        used = inputs.slots >= 0
        output = torch.full(inputs.q.shape, 7.0)
        triton_decode(inputs, SCALE, ours, output)
        expected = torch.full(inputs.q.shape, 7.0)  # what is skipped stays as it was
        kept = DecodeInputs(*(x if x is inputs.log_decay else x[used] for x in inputs))
        part = torch.empty_like(expected[used])
        torch_decode(kept, SCALE, theirs, part)
        expected[used] = part
        errors.append([float((output - expected).abs().max()), float((ours - theirs).abs().max())])
    json.dump(errors, sys.stdout)


if __name__ == "__main__":
    main()
