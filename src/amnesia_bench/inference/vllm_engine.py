"""The vLLM engine, which warms up vLLM's prefix cache.

vLLM shares common prefixes itself, but it keeps the linear states of a hybrid model only where a
request ended or where earlier prompts branched. The engine therefore first generates one token for
the common prefix up to each cut, the shortest prefix first. Each warm-up request resumes at the end
of the previous one, and vLLM keeps the states at the end of the request, where the prompts resume.
"""

from __future__ import annotations

import gc
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from amnesia_bench.errors import MissingEnvironmentError, StageFailedError, UserError
from amnesia_bench.inference.decoding import (
    answer_decoder,
    check_room,
    end_tokens,
    generation_of,
    not_finite,
)
from amnesia_bench.inference.prefix_check import first_difference, refuse_sampled, tie_gap
from amnesia_bench.inference.prefix_tree import PrefixNode, PromptDigest, plan_prefixes
from amnesia_bench.inference.protocol import EngineOptions, PromptRequest, UntrustedAnswersError
from amnesia_bench.inference.vllm_checks import check_start
from amnesia_bench.inference.vllm_output import CapturedOutput
from amnesia_bench.modeling import HypeNetConfig
from amnesia_bench.records.evaluation import FinishReason, Generation
from amnesia_bench.tokenizers.tokenizer import load_tokenizer

log = logging.getLogger(__name__)

# Requests are sent to vLLM in windows, which bound the host memory and the work lost by a kill.
_WINDOW_TOKENS, _WINDOW_REQUESTS = 1 << 22, 1024
# Cuts are multiples of vLLM's block size, but blocks are often only 16 tokens long: too short to
# compute a digest and run a warm-up request for each.
_MIN_CHUNK_TOKENS = 256
_TOP_LOGITS = 5


class VllmEngine:
    """The `Engine` that runs vLLM; see `load`."""

    def __init__(
        self,
        llm: Any,
        tokenizer: Any,
        options: EngineOptions,
        ends: frozenset[int],
        output: CapturedOutput,
    ) -> None:
        self.tokenizer = tokenizer
        self._llm = llm
        self._options = options
        self._ends = ends
        self._output = output
        self._decode = answer_decoder(tokenizer)
        config = llm.llm_engine.vllm_config
        self._limit: int = config.model_config.max_model_len
        self._dtype = str(config.model_config.dtype).removeprefix("torch.")
        self._step_tokens: int = config.scheduler_config.max_num_batched_tokens
        self._model_settings = {}
        if isinstance(model_config := config.model_config.hf_config, HypeNetConfig):
            self._model_settings["attn_logits_scaling"] = str(model_config.attn_logits_scaling)
        block: int = config.cache_config.block_size
        self._is_hybrid = bool(config.model_config.is_hybrid)
        # The blocks of a hybrid are as large as a state: hundreds of tokens.
        self._chunk = block if self._is_hybrid else block * -(-_MIN_CHUNK_TOKENS // block)

    @classmethod
    def load(cls, checkpoint: Path, options: EngineOptions) -> VllmEngine:
        """Load a checkpoint folder without running any code in it.

        Raises:
            MissingEnvironmentError: vLLM is not installed, or does not find our plugin.
            UserError: vLLM cannot run this model, or the options name a device.
        """
        try:
            import vllm
            from transformers import GenerationConfig
        except ImportError as error:
            raise MissingEnvironmentError(
                f"the vllm engine needs vLLM ({error})",
                hint='In an environment of its own: pip install "amnesia-bench[eval,vllm]"',
            ) from error
        changes = check_start(checkpoint, options)
        tokenizer = load_tokenizer(checkpoint)
        gc.collect()  # an earlier engine keeps its GPU memory until it is collected
        output = CapturedOutput()
        try:
            # Raw logits show whether two tokens tie within rounding. With generation_config="vllm",
            # vLLM ignores the checkpoint's sampling defaults and uses only those of the request.
            with output.capture():
                llm = vllm.LLM(
                    model=str(checkpoint),
                    dtype=options.dtype,
                    max_model_len=options.max_context_tokens,
                    enable_prefix_caching=options.share_prefixes,
                    hf_overrides=changes,
                    generation_config="vllm",
                    logprobs_mode="raw_logits",
                    disable_log_stats=True,
                    trust_remote_code=False,
                )
        except Exception as error:  # of any kind; vLLM starts other processes
            reason, hint = output.explain(error)
            raise UserError(f"{checkpoint}: vLLM cannot run it ({reason})", hint=hint) from error
        generation_config = None
        if (checkpoint / "generation_config.json").is_file():
            generation_config = GenerationConfig.from_pretrained(checkpoint)
        return cls(llm, tokenizer, options, end_tokens(tokenizer, generation_config), output)

    @property
    def settings(self) -> Mapping[str, str]:
        """All settings that can affect an answer."""
        import vllm

        return {
            "engine": "vllm",
            "vllm": vllm.__version__,
            "dtype": self._dtype,
            "prefixes": "shared" if self._options.share_prefixes else "full",
            "max_context_tokens": str(self._limit),
            "step_tokens": str(self._step_tokens),
            **self._model_settings,
            "eos_token_ids": " ".join(map(str, sorted(self._ends))),
        }

    def generate(self, requests: Sequence[PromptRequest]) -> Iterator[Generation]:
        """Answer every request in the order of the prefix tree, one window at a time.

        Raises:
            UserError: a prompt is empty or, with its new tokens, exceeds the model's context.
            StageFailedError: the logit of a generated token is not finite, or vLLM stopped, for
                example because it ran out of memory.
            UntrustedAnswersError: an answer that is recomputed without the prefix cache differs.
        """
        digests = []
        for i in range(len(requests)):
            request = requests[i]
            check_room(request, self._limit)
            digests.append(PromptDigest.of(request.tokens, self._chunk))
        nodes = plan_prefixes(digests, self._chunk, share=self._options.share_prefixes)
        order = [(i, node) for node in nodes for i in node.leaves]
        checked = self._spread([i for i, _ in order])
        for i in checked:
            refuse_sampled(requests[i])
        primed: set[tuple[int, int]] = set()
        for window in _windows(order, digests):
            for node in (node for _, node in window):
                self._prime(node, nodes, requests, primed)
            batch = [requests[i] for i, _ in window]
            for request, (i, _), generation in zip(
                batch, window, self._answers(batch), strict=True
            ):
                if i in checked:
                    self._check(request, generation)
                yield generation

    def _spread(self, order: Sequence[int]) -> frozenset[int]:
        """Return the indices of the requests to recompute, evenly spaced in tree order."""
        count = min(self._options.verify_prefix, len(order))
        return frozenset(order[n * len(order) // count] for n in range(count))

    def _prime(
        self,
        node: PrefixNode,
        nodes: Sequence[PrefixNode],
        requests: Sequence[PromptRequest],
        primed: set[tuple[int, int]],
    ) -> None:
        """Warm up vLLM's prefix cache at every cut on the path from the root to a node."""
        path = [node]
        while path[-1].parent is not None:
            path.append(nodes[path[-1].parent])
        for step in reversed(path):
            # Cut and source identify a node, since nodes with equal cuts have no prompt in common.
            if step.cut and (step.cut, step.source) not in primed:
                primed.add((step.cut, step.source))
                # The last token of a request is always computed. So vLLM keeps the states of a
                # hybrid at the last end of a block before that token, not after it.
                end = step.cut + 1 if self._is_hybrid else step.cut
                self._run([requests[step.source].tokens[:end]], [self._params(max_tokens=1)])

    def _answers(self, batch: Sequence[PromptRequest]) -> list[Generation]:
        params = [
            self._params(
                max_tokens=request.sampling.max_new_tokens,
                temperature=request.sampling.temperature,
                top_p=request.sampling.top_p,
                top_k=request.sampling.top_k or 0,
                stop=list(request.sampling.stop),
                seed=request.seed,
                logprobs=0,  # logit of the chosen token only: NaN if logits are not finite
            )
            for request in batch
        ]
        outputs = self._run([request.tokens for request in batch], params)
        return [self._generation(r, o.outputs[0]) for r, o in zip(batch, outputs, strict=True)]

    def _generation(self, request: PromptRequest, output: Any) -> Generation:
        tokens = list(output.token_ids)
        for place, (token, logits) in enumerate(zip(tokens, output.logprobs, strict=False)):
            if not math.isfinite(logits[token].logprob):
                raise not_finite(request, place)
        reason = FinishReason.LENGTH
        if output.finish_reason == "stop":
            reason = FinishReason.STOP if isinstance(output.stop_reason, str) else FinishReason.EOS
        if tokens and tokens[-1] in self._ends:
            tokens.pop()
        return generation_of(request, tokens, reason, self._decode)

    def _params(self, **values: Any) -> Any:
        from vllm import SamplingParams

        return SamplingParams(stop_token_ids=sorted(self._ends), **({"temperature": 0.0} | values))

    def _run(self, prompts: Sequence[Any], params: Sequence[Any]) -> list[Any]:
        inputs = [{"prompt_token_ids": tokens.tolist()} for tokens in prompts]
        try:
            outputs: list[Any] = self._llm.generate(inputs, list(params), use_tqdm=False)
        except Exception as error:  # of any kind; the model runs in another process
            reason, hint = self._output.explain(error)
            raise StageFailedError(f"vLLM stopped ({reason})", hint=hint) from error
        return outputs

    def _check(self, request: PromptRequest, shared: Generation) -> None:
        """Recompute an answer without reading the prefix cache, and compare it with `shared`."""
        params = self._params(
            max_tokens=request.sampling.max_new_tokens,
            stop=list(request.sampling.stop),
            skip_reading_prefix_cache=True,
            logprobs=_TOP_LOGITS,
        )
        output = self._run([request.tokens], [params])[0].outputs[0]
        full = self._generation(request, output)
        if full.tokens == shared.tokens:
            return
        place = first_difference(full.tokens, shared.tokens)
        logits = {token: entry.logprob for token, entry in output.logprobs[place].items()}
        best = max(logits.values())
        others = shared.tokens[place : place + 1] or tuple(self._ends)
        gap = best - max(logits.get(token, float("-inf")) for token in others)
        key = request.key
        where = f"{key.task} document {key.doc}, token {place} of the answer"
        if gap > tie_gap(getattr(torch, self._dtype), best):
            raise UntrustedAnswersError(
                f"{where}: vLLM's prefix cache changes the token; the logits differ by {gap:.3g}",
                hint="Set share_prefixes to false, and report this model.",
            )
        log.warning("%s: another token, in a tie within rounding (%.3g)", where, gap)


def _windows(
    order: Sequence[tuple[int, PrefixNode]], digests: Sequence[PromptDigest]
) -> Iterator[list[tuple[int, PrefixNode]]]:
    window: list[tuple[int, PrefixNode]] = []
    tokens = 0
    for entry in order:
        prompt_tokens = digests[entry[0]].num_tokens
        if window and (tokens + prompt_tokens > _WINDOW_TOKENS or len(window) == _WINDOW_REQUESTS):
            yield window
            window, tokens = [], 0
        window.append(entry)
        tokens += prompt_tokens
    if window:
        yield window
