"""lm-eval's `LM` over an `Engine`: registered as `amnesia` when this module is imported."""

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

# What lm-eval's own models take when a task names no limit.
_DEFAULT_MAX_NEW_TOKENS = 256
_KNOWN = frozenset({"do_sample", "max_gen_toks", "seed", "temperature", "top_k", "top_p", "until"})


def sampling_of(gen_kwargs: Mapping[str, Any], where: str) -> tuple[Sampling, int]:
    """Return the sampling that these kwargs ask for, and the base of its seeds.

    Defaults are lm-eval's: greedy, 256 new tokens. One is not: `top_k` is off where nobody names
    it, and not the 50 that transformers adds by itself.

    Args:
        gen_kwargs: of one request: a task's `generation_kwargs`, changed by `--gen_kwargs`.
        where: the task, for messages.

    Raises:
        UserError: a key that no engine here has, or a value that is none.
    """
    normal = normalize_gen_kwargs(dict(gen_kwargs), _DEFAULT_MAX_NEW_TOKENS)
    if unknown := sorted(set(normal) - _KNOWN):
        raise UserError(
            f"{where}: generation kwargs {', '.join(unknown)}: not known to the model amnesia, "
            "and left out they would change the score",
            hint=f"Known: {', '.join(sorted(_KNOWN))}.",
        )
    temperature = float(normal.get("temperature") or 0.0)
    if normal["do_sample"] and temperature == 0:
        raise UserError(
            f"{where}: do_sample=true with a temperature of 0",
            hint="--gen_kwargs do_sample=true,temperature=0.6, or do_sample=false for greedy",
        )
    # What a greedy choice ignores is left at off, so that it cannot tell two runs apart.
    drawn: Mapping[str, Any] = normal if normal["do_sample"] else {}
    top_k = drawn.get("top_k")
    try:
        sampling = Sampling(
            max_new_tokens=normal["max_gen_toks"],
            temperature=temperature if drawn else 0.0,
            top_p=float(drawn.get("top_p") or 1.0),
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
    """Generates through an engine. Nothing is truncated: what is too long, the engine refuses.

    lm-eval's own data parallelism is not used: one process asks, and the engine spreads the work.

    Args:
        engine: what answers.
        tokenizer: its model's.
        prompt_set: its tokens are known, so that 256K of them need not be made anew for every
            sample; None if there are none.
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
        """Load a checkpoint by lm-eval's `--model_args`; see `create_from_arg_obj`."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> AmnesiaLM:
        """Load a checkpoint by lm-eval's `--model_args`.

        Args:
            arg_dict: `pretrained` is the folder, `engine` the name of one (transformers);
                `max_length` replaces the limit in the model's config; the other names are those
                of `EngineOptions`.
            additional_config: what lm-eval adds, which is not used: the engine counts tokens and
                no `batch_size`, and `device` is cuda:0 where nobody typed one.

        Raises:
            UserError: an argument is missing or unknown, or the folder holds no model.
        """
        given = dict(arg_dict)
        folder, name = given.pop("pretrained", None), given.pop("engine", "transformers")
        if folder is None:
            raise UserError(
                "model amnesia: which checkpoint?", hint="--model_args pretrained=FOLDER"
            )
        if "max_length" in given:
            given["max_context_tokens"] = given.pop("max_length")
        known = {field.name for field in fields(EngineOptions)}
        if unknown := sorted(set(given) - known):
            raise UserError(
                f"model amnesia: unknown --model_args {', '.join(unknown)}",
                hint=f"Known: pretrained, engine, max_length, {', '.join(sorted(known))}.",
            )
        checkpoint = Path(str(folder))
        engine = load_engine(name, checkpoint, EngineOptions(**given))
        return cls(engine, load_tokenizer(checkpoint))

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Answer lm-eval's requests, in their order.

        A document that is asked about several times is the same `Instance` every time; its n-th
        occurrence is its n-th repeat, with a seed of its own.

        Raises:
            UserError: a prompt with its answer is too long, or kwargs that no engine has.
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
                    hint="NIAH is run without chat template, system instruction and examples.",
                )
            return with_special_tokens(self.tokenizer, prompt_set.tokens(doc))
        return np.asarray(self.tok_encode(prompt.text), dtype=np.int32)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Tokenise as lm-eval's HFLM does: with what the tokenizer adds, but no second BOS."""
        if add_special_tokens is None:
            bos = self.tokenizer.bos_token
            add_special_tokens = not (bos and string.startswith(bos))
        ids = self.tokenizer(string, add_special_tokens=add_special_tokens).input_ids
        return list(ids)

    @property
    def eot_token_id(self) -> int | None:
        """The id of the tokenizer's end token."""
        end: int | None = self.tokenizer.eos_token_id
        return end

    @property
    def tokenizer_name(self) -> str:
        """A name for lm-eval's caches."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return the text of a conversation; a begun answer at its end is continued."""
        text: str = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return text

    def set_cache_hook(self, cache_hook: Any) -> NoReturn:
        """Refuse lm-eval's `--use_cache`."""
        raise UserError(
            "--use_cache: lm-eval keeps answers under a name without the model, so another "
            "checkpoint would be scored by the answers of the first",
            hint="Leave it out; `amnesia eval niah` resumes by itself.",
        )

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> NoReturn:
        """Refuse: an engine generates."""
        raise _scores_no_text()

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> NoReturn:
        """Refuse: an engine generates."""
        raise _scores_no_text()

    def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> NoReturn:
        raise _scores_no_text()


def _prompts(requests: Sequence[Any]) -> list[_Prompt]:
    seen: Counter[tuple[str, int]] = Counter()
    prompts = []
    for request in requests:
        text, gen_kwargs = request.args
        sampling, seed = sampling_of(gen_kwargs, request.task_name)
        asked = (request.task_name, request.doc_id)
        key = SampleKey(task=asked[0], doc=asked[1], repeat=seen[asked])
        seen[asked] += 1
        own_seed = None if sampling.greedy else sample_seed(seed, key)
        prompts.append(_Prompt(key=key, text=text, sampling=sampling, seed=own_seed))
    return prompts


def _scores_no_text() -> UserError:
    return UserError(
        "the model amnesia generates text and does not score it: it runs tasks with "
        "output_type generate_until only",
        hint="lm-eval's own model runs the others: --model hf --model_args pretrained=FOLDER",
    )
