"""HypeNet and Jet-Nemotron through the real vLLM, against the models of `modeling`.

Runs in an environment of its own: `make test-vllm`.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from amnesia_bench.modeling.packing import PackedRows
from tests.support.vllm_models import NEW_TOKENS, compare, mixed_prompts, save_hypenet, save_jet

pytest.importorskip("vllm", reason="vLLM is not installed in this environment")
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1200)]  # an engine starts in half a minute

# The models and vLLM's options. All switches are on in the first one, and off in the fourth.
CASES: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "tied": (save_hypenet, {}, {}),
    "compiled, grouped heads": (
        save_hypenet,
        {"tie_word_embeddings": False, "lightning_nkv": 2},
        {"enforce_eager": False},
    ),
    "two ranks, grouped heads": (
        save_hypenet,
        {"tie_word_embeddings": False, "lightning_nkv": 2},
        {"tensor_parallel_size": 2, "max_num_batched_tokens": 130},
    ),
    "plain, six heads, small steps": (
        save_hypenet,
        {
            "num_attention_heads": 6,
            "lightning_nh": 6,
            "lightning_nkv": 6,
            "attn_use_rope": True,
            "attn_use_output_gate": False,
            "lightning_use_qk_norm": False,
            "lightning_use_output_norm": False,
            "lightning_use_output_gate": False,
            "lightning_use_rope": False,
        },
        {"max_num_batched_tokens": 48},
    ),
    "jet": (save_jet, {}, {}),
    "jet, two ranks": (save_jet, {"tie_word_embeddings": False}, {"tensor_parallel_size": 2}),
}


def test_a_request_without_a_state_is_recognised() -> None:
    """vLLM counts a prompt of one token as a decode; its slot has the state of another request."""
    from amnesia_bench.vllm_plugin.step_metadata import StepMetadata

    step = StepMetadata(
        num_prefills=2,
        num_prefill_tokens=5,
        num_decodes=3,
        num_decode_tokens=3,
        query_start_loc=torch.tensor([0, 1, 2, 3, 6, 8]),
        seq_lens=torch.tensor([1, 5, 2, 3, 9]),
        state_indices_tensor=torch.tensor([4, 2, 9, 7, 3]),
        prefills=PackedRows.from_bounds((0, 3, 5), torch.device("cpu")),
    )
    assert step.decode_is_first.tolist() == [True, False, False]
    assert step.prefill_is_first.tolist() == [True, False]
    assert step.decode_slots.tolist() == [4, 2, 9]
    assert step.prefill_slots.tolist() == [7, 3]
    assert step.num_tokens == 8


# Between float32 and float64, the logits of this model already differ by up to 4e-5 in decoding:
# the gated delta rule multiplies many rounded states.
_JET_ERROR = 5e-5


@pytest.mark.parametrize("name", CASES)
def test_greedy_answers_are_those_of_transformers(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm import LLM

    # Otherwise vLLM refuses two ranks on a machine with one NUMA node.
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    save, changes, options = CASES[name]
    folder = save(tmp_path, **changes)
    overrides = {"attn_logits_scaling": "hype 500"} if save is save_hypenet else {}
    llm = LLM(
        str(folder),
        skip_tokenizer_init=True,
        dtype="float32",
        max_model_len=2048,
        max_num_seqs=4,
        hf_overrides=overrides,
        logprobs_mode="raw_logprobs",
        **{"enforce_eager": True, "max_num_batched_tokens": 256, **options},
    )
    try:
        # In the second round, slots contain states of other requests, and the prefix cache
        # contains the beginnings of all prompts.
        for second in (False, True):
            result = compare(llm, folder, **overrides)
            assert result.tokens == len(mixed_prompts()) * NEW_TOKENS
            assert result.distinct > 40
            assert result.wrong == 0
            assert result.largest_error < (2e-5 if save is save_hypenet else _JET_ERROR)
            assert sum(result.cached) > (4000 if second else 1000)
    finally:
        llm.llm_engine.engine_core.shutdown()
