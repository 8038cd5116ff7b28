"""lm-eval's `LM` interface for an `Engine`; importing this module registers `amnesia`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import simple_parse_args_string
from numpy.typing import NDArray

from amnesia_bench.errors import UserError
from amnesia_bench.inference.load_engine import load_engine
from amnesia_bench.inference.protocol import (
    Engine,
    EngineOptions,
    OnDemand,
    PromptRequest,
    sample_seed,
)
from amnesia_bench.lm_eval_bridge.niah_task import DocumentPromptSet
from amnesia_bench.records.evaluation import SampleKey, Sampling
from amnesia_bench.tokenizers.tokenizer import load_tokenizer, with_special_tokens

# The limit that lm-eval's own models use for a task without one.
_DEFAULT_MAX_NEW_TOKENS = 256
_KNOWN = frozenset({"do_sample", "max_gen_toks", "seed", "temperature", "top_k", "top_p", "until"})


def sampling_of(gen_kwargs: Mapping[str, Any], where: str) -> tuple[Sampling, int]:
    """Convert lm-eval's generation kwargs to sampling parameters and a base seed.

    The defaults are those of lm-eval: greedy decoding and 256 new tokens. The exception is `top_k`,
    which is off by default, whereas transformers' default is 50.

    Args:
        gen_kwargs: the kwargs of a request: the task's `generation_kwargs`, updated with
            `--gen_kwargs`.
        where: the name of the task, for messages.

    Raises:
        UserError: a key is not supported, or a value is invalid.
    """
    normal = normalize_gen_kwargs(dict(gen_kwargs), _DEFAULT_MAX_NEW_TOKENS)
    if unknown := sorted(set(normal) - _KNOWN):
        raise UserError(
            f"{where}: the model amnesia does not support the generation kwargs "
            f"{', '.join(unknown)}, and ignoring them would change the score",
            hint=f"Known: {', '.join(sorted(_KNOWN))}.",
        )
    temperature = float(normal.get("temperature") or 0.0)
    if normal["do_sample"] and temperature == 0:
        raise UserError(
            f"{where}: do_sample=true needs a temperature above 0",
            hint="--gen_kwargs do_sample=true,temperature=0.6, or do_sample=false for greedy",
        )
    # Greedy decoding ignores these; defaults keep them from affecting the identity of a run.
    sampled: Mapping[str, Any] = normal if normal["do_sample"] else {}
    top_k = sampled.get("top_k")
    try:
        sampling = Sampling(
            max_new_tokens=normal["max_gen_toks"],
            temperature=temperature if sampled else 0.0,
            top_p=float(sampled.get("top_p") or 1.0),
            top_k=int(top_k) if top_k is not None and int(top_k) > 0 else None,
            stop=tuple(dict.fromkeys(stop for stop in normal["until"] if stop)),
        )
    except ValueError as error:
        raise UserError(f"{where}: generation kwargs: {error}") from error
    return sampling, int(normal.get("seed") or 0)


@dataclass(frozen=True, kw_only=True)
class _Prompt:
    key: SampleKey
    text: str
    sampling: Sampling
    seed: int | None


@register_model("amnesia")
class AmnesiaLM(TemplateLM):  # type: ignore[misc]
    """An lm-eval model that generates with an engine.

    Prompts are never truncated: the engine raises an error for prompts that are too long. lm-eval's
    data parallelism is not used: one process sends all requests, and the engine distributes them.

    Args:
        engine: the engine that generates the answers.
        tokenizer: the tokenizer of the engine's model.
        prompt_set: stored prompts with known token ids, which avoids tokenising up to 256K tokens
            per prompt; None if there are none.
    """

    def __init__(
        self, engine: Engine, tokenizer: Any, prompt_set: DocumentPromptSet | None = None
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self._engine = engine
        self._prompt_set = prompt_set

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: dict[str, Any] | None = None
    ) -> AmnesiaLM:
        """Load the checkpoint in lm-eval's `--model_args`; see `create_from_arg_obj`."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> AmnesiaLM:
        """Load the checkpoint in lm-eval's `--model_args`.

        Args:
            arg_dict: `pretrained` is the checkpoint folder, `engine` the name of the engine
                (default: transformers), and `max_length` overrides the limit in the model's config.
                All other keys are fields of `EngineOptions`.
            additional_config: values that lm-eval adds; they are ignored. The engine limits batches
                by tokens and not by `batch_size`, and lm-eval's default `device` is cuda:0.

        Raises:
            UserError: an argument is missing or unknown, or the folder contains no model.
        """
        options = dict(arg_dict)
        folder, name = options.pop("pretrained", None), options.pop("engine", "transformers")
        if folder is None:
            raise UserError("model amnesia: no checkpoint", hint="--model_args pretrained=FOLDER")
        if "max_length" in options:
            options["max_context_tokens"] = options.pop("max_length")
        known = {field.name for field in fields(EngineOptions)}
        if unknown := sorted(set(options) - known):
            raise UserError(
                f"model amnesia: unknown --model_args {', '.join(unknown)}",
                hint=f"Known: pretrained, engine, max_length, {', '.join(sorted(known))}.",
            )
        checkpoint = Path(str(folder))
        engine = load_engine(name, checkpoint, EngineOptions(**options))
        return cls(engine, load_tokenizer(checkpoint))

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return the answers to lm-eval's requests, in the order of the requests.

        For repeats of a document, lm-eval passes the same `Instance` several times. Its n-th
        occurrence is the n-th repeat, which has its own seed.

        Raises:
            UserError: a prompt with its answer is too long, or a generation kwarg is not supported.
        """
        prompts = _prompts(requests)
        tokenised = OnDemand(lambda i: self._request(prompts[i]), range(len(prompts)))
        answers = {
            generation.key: generation.text for generation in self._engine.generate(tokenised)
        }
        return [answers[prompt.key] for prompt in prompts]

    def _request(self, prompt: _Prompt) -> PromptRequest:
        return PromptRequest(
            key=prompt.key,
            tokens=self._tokens(prompt),
            sampling=prompt.sampling,
            seed=prompt.seed,
        )

    def _tokens(self, prompt: _Prompt) -> NDArray[np.int32]:
        prompt_set = self._prompt_set
        if prompt_set is not None and prompt.key.task == prompt_set.name:
            doc = prompt.key.doc
            if prompt_set.prompt(doc) != prompt.text:
                raise UserError(
                    f"{prompt_set.name}, document {doc}: lm-eval changed the prompt",
                    hint="Run NIAH without chat template, system instruction and examples.",
                )
            return with_special_tokens(self.tokenizer, prompt_set.tokens(doc))
        return np.asarray(self.tok_encode(prompt.text), dtype=np.int32)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Return token ids as in lm-eval's HFLM: with special tokens, but without a second BOS."""
        if add_special_tokens is None:
            bos = self.tokenizer.bos_token
            add_special_tokens = not (bos and string.startswith(bos))
        ids = self.tokenizer(string, add_special_tokens=add_special_tokens).input_ids
        return list(ids)

    @property
    def eot_token_id(self) -> int | None:
        """The tokenizer's end token id, or None."""
        end: int | None = self.tokenizer.eos_token_id
        return end

    @property
    def tokenizer_name(self) -> str:
        """The name of the tokenizer, for lm-eval's caches."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return the text of a conversation.

        Without a generation prompt, the text ends with the last message, which the model continues.
        """
        text: str = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return text

    def set_cache_hook(self, cache_hook: Any) -> NoReturn:
        """Raise UserError: lm-eval's `--use_cache` is not supported."""
        raise UserError(
            "--use_cache: lm-eval's cache key does not contain the model, so another checkpoint "
            "would get the answers of the first",
            hint="Remove the option; `amnesia eval niah` resumes automatically.",
        )

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> NoReturn:
        """Raise UserError: engines only generate text."""
        raise _no_loglikelihood()

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> NoReturn:
        """Raise UserError: engines only generate text."""
        raise _no_loglikelihood()

    def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> NoReturn:
        raise _no_loglikelihood()


def _prompts(requests: Sequence[Any]) -> list[_Prompt]:
    seen: Counter[tuple[str, int]] = Counter()
    prompts = []
    for request in requests:
        text, gen_kwargs = request.args
        sampling, seed = sampling_of(gen_kwargs, request.task_name)
        task, doc = request.task_name, request.doc_id
        key = SampleKey(task=task, doc=doc, repeat=seen[task, doc])
        seen[task, doc] += 1
        request_seed = None if sampling.greedy else sample_seed(seed, key)
        prompts.append(_Prompt(key=key, text=text, sampling=sampling, seed=request_seed))
    return prompts


def _no_loglikelihood() -> UserError:
    return UserError(
        "the model amnesia only generates text: it runs tasks with output_type generate_until, "
        "and computes no log-likelihoods",
        hint="lm-eval's own model runs other tasks: --model hf --model_args pretrained=FOLDER",
    )
