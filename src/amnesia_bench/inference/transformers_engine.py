"""The engine for any causal LM of transformers, including HypeNet, with shared prefixes.

Shared prefixes are prefilled once: prompts are visited in prefix-tree order with a single KV cache
(`prefix_tree`), which is truncated to the branch point before each prompt. This copies no keys or
values; only the linear states at each cut on the current path are kept. Prefilled prompts are
copied into a batch (`caches`). When the batch is full, its rows are decoded together; finished
answers are yielded at once, and their rows are removed from the batch from time to time
(`decoding`).

A run without shared prefixes makes the same calls: all prompts are prefilled in chunks of
`prefill_chunk_tokens`, and all cuts are multiples of this chunk size. With deterministic kernels,
answers in batches of one row are therefore bit-identical. In larger batches, answers are only
mathematically equivalent: matrix products of other shapes and sums over padding round differently,
and if the two most likely tokens tie within rounding, either may be chosen.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from amnesia_bench.errors import StageFailedError, UserError
from amnesia_bench.inference.decoding import (
    DecodingRow,
    Stopping,
    answer_decoder,
    check_room,
    decode_batch,
    end_tokens,
)
from amnesia_bench.inference.language_model import (
    MemoryExhaustedError,
    context_limit,
    is_out_of_memory,
    prepare_model,
    release_memory,
)
from amnesia_bench.inference.prefix_check import PrefixCheck
from amnesia_bench.inference.prefix_tree import (
    BatchLimits,
    Leaf,
    PrefixNode,
    PrefixWalker,
    PromptDigest,
    first_batch,
    leaves_of,
    max_row_tokens,
    plan_prefixes,
)
from amnesia_bench.inference.protocol import EngineOptions, PromptRequest
from amnesia_bench.modeling import HypeNetConfig
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
        model.eval()
        self._limit = context_limit(model.config, options.max_context_tokens)
        if isinstance(model.config, HypeNetConfig) and options.max_context_tokens is not None:
            # HypeNet raises an error for positions beyond the limit in its config.
            model.config.max_position_embeddings = options.max_context_tokens
        self._model = prepare_model(model, self._limit)
        self._chunk = options.chunk_on(self._model.device.type)
        self._eos_ids = end_tokens(tokenizer, getattr(model, "generation_config", None))
        self._decode = answer_decoder(tokenizer)
        # Reduced when memory runs out, so that it does not run out again in every batch.
        self._batch_tokens = options.max_batch_tokens
        self._longest = 0

    @classmethod
    def load(cls, checkpoint: Path, options: EngineOptions) -> TransformersEngine:
        """Load a checkpoint folder without running any code in it.

        Raises:
            UserError: the folder lacks a causal LM or a tokenizer, or the device does not exist.
        """
        tokenizer, device = load_tokenizer(checkpoint), _device(options.device)
        scaling = options.attn_logits_scaling
        changes = {} if scaling is None else {"attn_logits_scaling": scaling}
        try:
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
        except UserError:
            raise
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise StageFailedError(
                    f"{checkpoint}: the weights alone do not fit into the memory of {device}"
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
        leaves = leaves_of(nodes, [(digest.num_tokens, new) for digest, new in prompts])
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
            hint = f"A prompt and its answer fit up to about {fits:,} tokens together: use "
            if not fits:
                hint = f"Not even a first chunk of {chunk:,} tokens fits: use smaller chunks, "
            raise StageFailedError(
                f"out of memory on {self._model.device}, with one prompt at a time, after token "
                f"{error.fits:,}",
                hint=f"{hint}shorter contexts, or a larger device.",
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

    def _walk(
        self,
        requests: Sequence[PromptRequest],
        pending: Sequence[Leaf],
        nodes: Sequence[PrefixNode],
    ) -> Iterator[Generation]:
        walker = PrefixWalker(self._model, self._chunk, nodes, requests)
        while pending:
            limits = BatchLimits(self._batch_tokens, self._limit, unequal=self._model.joins_rows)
            batch = first_batch(pending, limits)
            rows = [DecodingRow.of(requests[leaf.index]) for leaf in batch]
            try:
                for row in decode_batch(self._model, walker.prefill(batch, rows), self._stopping):
                    yield row.generation(self._decode)
            except MemoryExhaustedError:
                if len(batch) == 1:
                    raise
            unfinished = [
                leaf for leaf, row in zip(batch, rows, strict=True) if row.finish_reason is None
            ]
            pending = [*unfinished, *pending[len(batch) :]]
            if unfinished:
                # Start with a new cache: the old one may lack the prefixes of unfinished rows.
                walker = PrefixWalker(self._model, self._chunk, nodes, requests)
                release_memory()
                count, columns = len(batch) // 2, max_row_tokens(batch)
                self._batch_tokens = count * columns
                log.warning(
                    "out of memory: batches of %d rows of %d tokens from now on", count, columns
                )


def _device(name: str | None) -> torch.device:
    """Return the named device. Without a name, return a GPU if one is available, else the CPU.

    Raises:
        UserError: the device does not exist.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device={name}: {str(error).partition(chr(10))[0]}", hint="Use cpu, cuda or cuda:N."
        ) from error
    return device
