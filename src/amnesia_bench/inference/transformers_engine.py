"""Answers from any causal LM of transformers, HypeNet included, with shared prefixes.

What prompts begin with in common is read once (`prefix_tree`): one cache walks the cuts in
ascending order, each prompt resumes at its own and overwrites what the one before wrote behind
it. So keys and values are not copied on the way, and one set of linear states per open cut is kept.
Once read, prompts are copied into a batch and wait there until it is full (`prefix_tree`,
`caches`); then all go on together, and leave as they are finished (`decoding`).

A full run makes the same calls: all prompts are read in pieces of `prefill_chunk_tokens`, and cuts
are multiples of it. Answers of single rows are then equal bit by bit where the kernels are
deterministic. Rows of a batch are equal mathematically: products of other shapes and sums over
padding round otherwise, and where two tokens are likely to within rounding, either may be chosen.
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
    PromptDigest,
    first_batch,
    leaves_of,
    max_row_tokens,
    plan_prefixes,
)
from amnesia_bench.inference.prefix_walk import PrefixWalker
from amnesia_bench.inference.protocol import EngineOptions, PromptRequest
from amnesia_bench.modeling import HypeNetConfig
from amnesia_bench.records.evaluation import Generation
from amnesia_bench.tokenizers.tokenizer import load_tokenizer

log = logging.getLogger(__name__)


class TransformersEngine:
    """The `Engine` that runs transformers.

    Args:
        model: a causal LM with weights, on its device.
        tokenizer: of its checkpoint.
        options: how to run.
    """

    def __init__(self, model: Any, tokenizer: Any, options: EngineOptions) -> None:
        self.tokenizer = tokenizer
        self._options = options
        model.eval()
        self._limit = context_limit(model.config, options.max_context_tokens)
        if isinstance(model.config, HypeNetConfig) and options.max_context_tokens is not None:
            # A HypeNet refuses positions beyond its config's.
            model.config.max_position_embeddings = options.max_context_tokens
        self._model = prepare_model(model, self._limit)
        self._chunk = options.chunk_on(self._model.device.type)
        self._eos_ids = end_tokens(tokenizer, getattr(model, "generation_config", None))
        self._decode = answer_decoder(tokenizer)
        # Shrinks when memory runs out, so that it runs out once and not at every batch.
        self._batch_tokens = options.max_batch_tokens
        self._longest = 0

    @classmethod
    def load(cls, checkpoint: Path, options: EngineOptions) -> TransformersEngine:
        """Load a checkpoint folder. No code in the folder is run.

        Raises:
            UserError: it holds no causal LM or tokenizer, or there is no such device.
        """
        tokenizer, device = load_tokenizer(checkpoint), _device(options.device)
        scaling = options.attn_logits_scaling
        changes = {} if scaling is None else {"attn_logits_scaling": scaling}
        try:
            loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
                checkpoint,
                dtype=options.dtype,
                local_files_only=True,
                trust_remote_code=False,  # without it transformers asks on the terminal
                output_loading_info=True,
                **changes,
            )
            model, missing = loaded[0].to(device), loaded[1]["missing_keys"]
        except UserError:
            raise
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise StageFailedError(
                    f"{checkpoint}: the weights alone do not fit the memory of {device}"
                ) from error
            raise UserError(
                f"{checkpoint}: no causal LM could be loaded ({str(error).partition(chr(10))[0]})",
                hint="The folder must hold config.json and safetensors of a model that the "
                "installed transformers knows.",
            ) from error
        if missing:
            # transformers would go on with random values in their place.
            raise UserError(
                f"{checkpoint}: missing tensor {min(missing)}",
                hint="The tensors do not fit config.json. Is the folder complete?",
            )
        return cls(model, tokenizer, options)

    @property
    def module(self) -> Any:
        """The model that answers."""
        return self._model.module

    @property
    def settings(self) -> Mapping[str, str]:
        """Everything that may change an answer; neither the batch size nor the checks do."""
        module = self._model.module
        chunk = self._chunk if self._model.in_pieces else None
        found = {
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
            found["attn_logits_scaling"] = str(module.config.attn_logits_scaling)
        return found

    @property
    def _prefixes(self) -> str:
        if not self._options.share_prefixes:
            return "full"
        reason = self._model.full_reason
        return "shared" if reason is None else f"full ({reason})"

    def generate(self, requests: Sequence[PromptRequest]) -> Iterator[Generation]:
        """Answer every request, those with a common prefix one after another.

        Each request is asked for at least twice: to compare prefixes, and to answer it.

        Raises:
            UserError: a prompt is empty, or longer with its new tokens than the model's context.
            StageFailedError: out of memory even alone, or logits that are not finite.
            UntrustedAnswersError: a checked answer came out otherwise.
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
            hint = f"A prompt and its answer fit up to about {fits:,} tokens together: ask for "
            if not fits:
                hint = f"Not even a first piece of {chunk:,} tokens fits: ask for smaller pieces, "
            raise StageFailedError(
                f"out of memory on {self._model.device}, with one prompt at a time, behind token "
                f"{error.fits:,}",
                hint=f"{hint}shorter contexts, or take a larger device.",
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
        """Return what is kept of a request until it is asked for again."""
        check_room(request, self._limit)
        digest = PromptDigest.of(request.tokens, self._chunk)
        return digest, request.sampling.max_new_tokens

    def _walk(
        self,
        requests: Sequence[PromptRequest],
        waiting: Sequence[Leaf],
        nodes: Sequence[PrefixNode],
    ) -> Iterator[Generation]:
        walker = PrefixWalker(self._model, self._chunk, nodes, requests)
        while waiting:
            limits = BatchLimits(self._batch_tokens, self._limit, unequal=self._model.joins_rows)
            batch = first_batch(waiting, limits)
            rows = [DecodingRow.of(requests[leaf.index]) for leaf in batch]
            try:
                for row in decode_batch(self._model, walker.read(batch, rows), self._stopping):
                    yield row.generation(self._decode)
            except MemoryExhaustedError:
                if len(batch) == 1:
                    raise
            left = [
                leaf for leaf, row in zip(batch, rows, strict=True) if row.finish_reason is None
            ]
            waiting = [*left, *waiting[len(batch) :]]
            if left:
                # The walk starts over: what was read of their prompts may be overwritten by now.
                walker = PrefixWalker(self._model, self._chunk, nodes, requests)
                release_memory()
                count, columns = len(batch) // 2, max_row_tokens(batch)
                self._batch_tokens = count * columns
                log.warning(
                    "out of memory: %d rows of %d tokens a batch from now on", count, columns
                )


def _device(name: str | None) -> torch.device:
    """Return a device that works; a GPU where there is one, unless it is named.

    Raises:
        UserError: there is no such device.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device={name}: {str(error).partition(chr(10))[0]}", hint="Use cpu, cuda or cuda:N."
        ) from error
    return device
