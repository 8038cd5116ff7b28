"""The engine for any causal LM of transformers, including HypeNet, with shared prefixes.

Shared prefixes are prefilled once: prompts are visited in prefix-tree order with a single KV cache
(`prefix_tree`), which is truncated to the branch point before each prompt. This copies no keys or
values; only the linear states at each cut on the current path are kept. Prefilled prompts are
copied into a batch (`caches`), whose rows are decoded together; repeats of a prompt are copies of
one row. Finished answers are yielded at once, and from time to time the next prompts take the
places of finished rows (`batch_decoder`). A batch has as many rows as fit into memory
(`batch_rows`).

A run without shared prefixes makes the same calls: all prompts are prefilled in chunks of
`prefill_chunk_tokens`, and all cuts are multiples of this chunk size. With deterministic kernels,
answers in batches of one row are therefore bit-identical. In larger batches, answers are only
mathematically equivalent: matrix products of other shapes and sums over padding round differently,
and if the two most likely tokens tie within rounding, either may be chosen.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from numpy.typing import NDArray
from torch import Tensor

from amnesia_bench.errors import StageFailedError, UserError
from amnesia_bench.inference.batch_decoder import BatchDecoder
from amnesia_bench.inference.batch_rows import max_rows, row_bytes
from amnesia_bench.inference.decoding import (
    DecodingRow,
    Stopping,
    answer_decoder,
    check_room,
    end_tokens,
)
from amnesia_bench.inference.devices import chosen_device
from amnesia_bench.inference.language_model import context_limit, prepare_model, token_rows
from amnesia_bench.inference.layer_memo import LayerMemo, memo_for
from amnesia_bench.inference.memory import (
    MemoryExhaustedError,
    free_bytes,
    is_out_of_memory,
    release_memory,
)
from amnesia_bench.inference.prefix_check import PrefixCheck
from amnesia_bench.inference.prefix_tree import (
    BatchLimits,
    Leaf,
    PrefixNode,
    PromptDigest,
    leaves_of,
    next_rows,
    plan_prefixes,
)
from amnesia_bench.inference.prefix_walk import PrefixWalker
from amnesia_bench.inference.protocol import EngineOptions, PromptRequest
from amnesia_bench.modeling import HypeNetConfig
from amnesia_bench.modeling.hybrid_config import HybridConfig
from amnesia_bench.modeling.numerics import multiplies, numeric_settings, use_exact_float32
from amnesia_bench.modeling.torch_forms import pytorch_forms_on_cpu
from amnesia_bench.records.evaluation import Generation
from amnesia_bench.tokenizers.tokenizer import load_tokenizer

log = logging.getLogger(__name__)


class TransformersEngine:
    """The `Engine` that runs a model of transformers.

    Args:
        model: a causal LM with weights, on its device.
        tokenizer: the tokenizer of its checkpoint.
        options: the engine options.
    """

    def __init__(self, model: Any, tokenizer: Any, options: EngineOptions) -> None:
        self.tokenizer = tokenizer
        self._options = options
        use_exact_float32()
        model.eval()
        self._limit = context_limit(model.config, options.max_context_tokens)
        if isinstance(model.config, HybridConfig) and options.max_context_tokens is not None:
            # Our models raise an error for positions beyond the limit in their config.
            model.config.max_position_embeddings = options.max_context_tokens
        self._model = prepare_model(model, self._limit)
        self._chunk = options.chunk_on(self._model.device.type)
        self._eos_ids = end_tokens(tokenizer, getattr(model, "generation_config", None))
        self._decode = answer_decoder(tokenizer)
        # Reduced when memory runs out, so that it does not run out again in every batch.
        self._max_bytes = math.inf
        self._longest = 0

    @classmethod
    def load(cls, checkpoint: Path, options: EngineOptions) -> TransformersEngine:
        """Load a checkpoint folder without running any code in it.

        Raises:
            UserError: the folder lacks a causal LM or a tokenizer, or the device does not exist.
        """
        tokenizer, device = load_tokenizer(checkpoint), chosen_device(options.device)
        scaling = options.attn_logits_scaling
        changes = {} if scaling is None else {"attn_logits_scaling": scaling}
        try:
            with pytorch_forms_on_cpu(device):
                loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
                    checkpoint,
                    dtype=options.dtype,
                    local_files_only=True,
                    trust_remote_code=False,  # if unset, transformers asks on the terminal
                    output_loading_info=True,
                    **changes,
                )
            # On the CPU, weights in the dtype of the checkpoint are pages of its files, which all
            # processes share. They are copied to a GPU one by one.
            model, missing = loaded[0].to(device), loaded[1]["missing_keys"]
            if options.dtype == "auto" and not multiplies(model.dtype, device):
                model = model.float()
        except UserError:
            raise
        except (OSError, ValueError, KeyError, RuntimeError, StrictDataclassError) as error:
            if is_out_of_memory(error):
                raise StageFailedError(
                    f"{checkpoint}: the weights alone do not fit into the memory of {device}",
                    hint="End other programs on the device (nvidia-smi lists them), or use a "
                    "device with more memory.",
                ) from error
            raise UserError(
                f"{checkpoint}: no causal LM could be loaded ({str(error).partition(chr(10))[0]})",
                hint="The folder must hold config.json and safetensors of a model that the "
                "installed transformers knows.",
            ) from error
        if missing:
            # transformers would use random values for missing tensors.
            raise UserError(
                f"{checkpoint}: missing tensor {min(missing)}",
                hint="The tensors do not match config.json. Is the folder complete?",
            )
        return cls(model, tokenizer, options)

    @property
    def module(self) -> Any:
        """The transformers model."""
        return self._model.module

    def share_layers(self, boundaries: Collection[int]) -> LayerMemo | None:
        """Compute layers that models have in common only once; see `layer_memo.memo_for`."""
        memo = memo_for(self._model, boundaries, free_bytes(self._model.device) / 2)
        self._model = replace(self._model, memo=memo)
        return memo

    @torch.inference_mode()
    def first_logits(self, tokens: NDArray[np.int32]) -> Tensor:
        """Prefill one prompt; return the logits [E], float32, that predict its first new token."""
        model = self._model
        return model.prefill(model.new_cache(), token_rows([tokens]), self._chunk)[0][0]

    @property
    def settings(self) -> Mapping[str, str]:
        """All settings that can affect an answer, unlike the batch size and checks."""
        module = self._model.module
        chunk = self._chunk if self._model.chunked_prefill else None
        settings = {
            "engine": "transformers",
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "device": self._model.device.type,
            "dtype": str(module.dtype).removeprefix("torch."),
            "attention": str(module.config._attn_implementation),
            "prefill_chunk_tokens": "whole prompt" if chunk is None else str(chunk),
            "prefixes": self._prefixes,
            "max_context_tokens": str(self._limit),
            "eos_token_ids": " ".join(map(str, sorted(self._eos_ids))),
            **numeric_settings(self._model.device, module.config.model_type),
        }
        if isinstance(module.config, HypeNetConfig):
            settings["attn_logits_scaling"] = str(module.config.attn_logits_scaling)
        return settings

    @property
    def _prefixes(self) -> str:
        if not self._options.share_prefixes:
            return "full"
        reason = self._model.full_reason
        return "shared" if reason is None else f"full ({reason})"

    def generate(self, requests: Sequence[PromptRequest]) -> Iterator[Generation]:
        """Answer every request; requests with a common prefix are answered consecutively.

        Each request is built at least twice: once to compare prefixes, and once to answer it.

        Raises:
            UserError: a prompt is empty or, with its new tokens, exceeds the model's context.
            StageFailedError: a single prompt does not fit into memory, or logits are not finite.
            UntrustedAnswersError: a recomputed answer differs from the original one.
        """
        prompts = [self._survey(requests[i]) for i in range(len(requests))]
        digests = [digest for digest, _ in prompts]
        chunk, shared = self._chunk, self._prefixes == "shared"
        nodes = plan_prefixes(digests, chunk, share=shared)
        leaves = leaves_of(nodes, digests, [new for _, new in prompts], share=shared)
        try:
            check = self._check(requests, nodes) if shared else None
            for generation in self._walk(requests, leaves, nodes):
                if check is not None:
                    check.compare(generation)
                self._longest = max(
                    self._longest, generation.prompt_tokens + len(generation.tokens)
                )
                yield generation
        except MemoryExhaustedError as error:
            fits = max(error.fits, self._longest)
            hint = (
                f"A prompt and its answer fit up to about {fits:,} tokens together. Use shorter "
                "prompts (--lengths N) or answers (--max-new-tokens N, eval.max_new_tokens=N)"
            )
            if not fits:
                hint = (
                    f"Not even a first chunk of {chunk:,} tokens fits. End other programs on the "
                    "device (nvidia-smi lists them)"
                )
            raise StageFailedError(
                f"out of memory on {self._model.device}, with one prompt at a time, after token "
                f"{error.fits:,}",
                hint=f"{hint}, or use a device with more memory.",
            ) from error

    def _check(
        self, requests: Sequence[PromptRequest], nodes: Sequence[PrefixNode]
    ) -> PrefixCheck | None:
        if not self._options.verify_prefix:
            return None
        check = PrefixCheck(self._model, self._chunk, self._stopping)
        order = [i for node in nodes for i in node.leaves]
        check.prepare(requests, order, self._options.verify_prefix)
        return check

    @property
    def _stopping(self) -> Stopping:
        return self._eos_ids, self._decode

    def _survey(self, request: PromptRequest) -> tuple[PromptDigest, int]:
        """Return the digest of a prompt, and the maximum number of tokens of its answer."""
        check_room(request, self._limit)
        digest = PromptDigest.of(request.tokens, self._chunk)
        return digest, request.sampling.max_new_tokens

    def _limits(self) -> BatchLimits:
        model, device = self._model, self._model.device
        vocab = model.module.get_input_embeddings().weight.shape[0]
        return BatchLimits(
            max_rows=self._options.max_rows or max_rows(device.type),
            free_bytes=free_bytes(device),
            max_bytes=self._max_bytes,
            row_bytes=lambda tokens: row_bytes(model.row_cache.bytes_at(tokens), vocab),
            unequal=model.joins_rows,
            chunk=self._chunk if model.chunked_prefill else None,
        )

    def _walk(
        self,
        requests: Sequence[PromptRequest],
        leaves: Sequence[Leaf],
        nodes: Sequence[PrefixNode],
    ) -> Iterator[Generation]:
        queue = _Queue(leaves, requests, self._limits())
        while queue.waiting:
            # A new cache for prefixes: after an error, the old one may lack those of some rows.
            walker = PrefixWalker(self._model, self._chunk, nodes, requests)
            decoder = BatchDecoder(self._model, self._stopping, self._limit)
            num_rows = 0
            try:
                for row in queue.answer(decoder, walker):
                    yield row.generation(self._decode)
            except MemoryExhaustedError:
                num_rows = max(len(queue.running), decoder.num_rows)
                if num_rows == 1:
                    raise
            if num_rows:
                del walker, decoder
                release_memory()
                self._max_bytes = queue.restart(num_rows)


class _Queue:
    """The prompts that wait for a row, and those that have one."""

    def __init__(
        self, leaves: Sequence[Leaf], requests: Sequence[PromptRequest], limits: BatchLimits
    ) -> None:
        self.waiting = deque(leaves)
        self.running: dict[DecodingRow, Leaf] = {}
        self._requests = requests
        self._limits = limits

    def answer(self, decoder: BatchDecoder, walker: PrefixWalker) -> Iterator[DecodingRow]:
        """Decode all prompts, and yield each row when it is finished."""
        while self.waiting or self.running:
            fits = True
            if self.waiting and decoder.wants_rows:
                batch = next_rows(self.waiting, list(self.running.values()), self._limits)
                # If the next prompt does not fit beside the running rows, finished rows are only
                # a burden until more of the others have ended.
                fits = bool(batch)
                if batch:
                    for _ in batch:
                        self.waiting.popleft()
                    rows = [DecodingRow.of(self._requests[leaf.index]) for leaf in batch]
                    self.running |= dict(zip(rows, batch, strict=True))
                    prompts = [(leaf, row.request) for leaf, row in zip(batch, rows, strict=True)]
                    following = self.waiting[0] if self.waiting else None
                    decoder.refill(rows, walker.prefill(prompts, following))
            refills = fits and bool(self.waiting) and self._limits.unequal
            for row in decoder.step(refills=refills):
                del self.running[row]
                yield row

    def restart(self, num_rows: int) -> float:
        """Put all unfinished prompts back after memory ran out with `num_rows` rows.

        Returns:
            The maximum bytes of all rows from now on.
        """
        columns = max(leaf.most_tokens for leaf in self.running.values())
        self._limits = self._limits.halved(num_rows, columns)
        log.warning(
            "out of memory: batches of %d rows of %d tokens from now on", num_rows // 2, columns
        )
        self.waiting.extendleft(reversed(self.running.values()))
        self.running = {}
        return self._limits.max_bytes
