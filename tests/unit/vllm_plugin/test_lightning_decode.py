"""The decoding step of linear layers in vLLM: in PyTorch, and as a kernel in an interpreter."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from amnesia_bench.modeling import alibi_log_decay, lightning_attention
from amnesia_bench.vllm_plugin.lightning_decode import torch_decode
from tests.support.decode_interpreter import SCALE, decode_case

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (6, 2)])
def test_a_step_is_lightning_attention_of_one_token(heads: int, groups: int) -> None:
    inputs, cache = decode_case(
        heads=heads, groups=groups, key_dim=20, slots=[3, 0, 5], first=[False, True, False]
    )
    before, output = cache.clone(), torch.empty(3, heads, 20)
    torch_decode(inputs, SCALE, cache, output)
    for row, (slot, first) in enumerate([(3, False), (0, True), (5, False)]):
        q, k, v = (x[None, row : row + 1] for x in inputs[:3])
        k, v = (x.repeat_interleave(heads // groups, dim=2) for x in (k, v))
        state = torch.zeros_like(before[:1]) if first else before[slot : slot + 1]
        expected, after = lightning_attention(q, k, v, alibi_log_decay(heads), SCALE, state)
        torch.testing.assert_close(output[row], expected[0, 0])
        torch.testing.assert_close(cache[slot], after[0])
    unused = [1, 2, 4, 6]
    assert torch.equal(cache[unused], before[unused])


def test_the_kernel_equals_pytorch() -> None:
    pytest.importorskip("triton", reason="Triton is not available on this platform")
    cases = [
        {"heads": 4, "groups": 4, "key_dim": 32, "slots": [2, 5, 1], "first": [False] * 3},
        # Grouped heads, a head dim that fills no block, a skipped request, and one without a state.
        {
            "heads": 6,
            "groups": 2,
            "key_dim": 40,
            "slots": [4, -1, 0, 6],
            "first": [False, False, True, False],
        },
    ]
    run = subprocess.run(
        [sys.executable, "-m", "tests.support.decode_interpreter"],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        check=False,
    )
    assert run.returncode == 0, run.stderr
    for errors in json.loads(run.stdout):
        assert max(errors) < 1e-5
