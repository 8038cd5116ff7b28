"""Inference time with and without batches and shared prefixes: bench_engines.py [--gpu SIZE].

Prints Markdown. Without `--gpu`: small models on one core, and the prompts of niah_single_2. With
it: random weights of a HypeNet of that size, prompts of random tokens shaped as those, and
lm-eval's own `hf` model on the same prompts.
"""

import argparse
import dataclasses
import gc
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from amnesia_bench.inference.prefix_tree import (
    PromptDigest,
    leaves_of,
    plan_prefixes,
    prefill_tokens,
)
from amnesia_bench.inference.protocol import EngineOptions, PromptRequest
from amnesia_bench.inference.transformers_engine import TransformersEngine
from amnesia_bench.modeling import HypeNetConfig, HypeNetForCausalLM
from amnesia_bench.modeling.named_configs import load_model_config
from amnesia_bench.recall.niah import build_prompts, open_prompt_sets
from amnesia_bench.recall.niah.haystack import read_haystack
from amnesia_bench.records.evaluation import SampleKey, Sampling
from amnesia_bench.requests.recall import BuildPromptsRequest

Answer = TypeVar("Answer")

SHARED = Path(os.environ.get("AMNESIA_SHARED", Path(__file__).resolve().parents[2] / "shared"))
HAYSTACK = SHARED / "data" / "pg_essays_ruler.json"
NEEDLE_TOKENS, QUESTION_TOKENS, DEPTHS = 24, 40, 40
VOCAB = 4096
# Narrow heads with a wide MLP: at 8K softmax attention then takes about the share of the time
# that it takes in Qwen2.5-7B at 32K (a third).
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2**20,
}
# A needle's value is answered in about ten tokens. 64 of 2,048 tokens: as 1,024 of 32,768.
SMALL_CHUNK, SMALL_NEW_TOKENS, SMALL_SAMPLES = 64, 10, 40
ALONE = EngineOptions(device="cpu", prefill_chunk_tokens=SMALL_CHUNK, max_rows=1)
LAPTOP_VOCAB = 1024
# lm-eval fills a length in steps of 500 words and leaves room for its answer: these make prompts of
# about 2K, 4K and 8K tokens.
SMALL_LENGTHS = (2500, 4500, 8600)


def small_model(name: str) -> Any:
    """Build the model of a CPU run."""
    torch.manual_seed(0)
    if name == "Qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**SHAPE)).eval()
    if name == "laptop":
        laptop = load_model_config("laptop")
        laptop.eos_token_id = None  # random weights end at random
        return HypeNetForCausalLM(laptop).eval()
    mixers = ["lightning-attn", "attn", "lightning-attn", "lightning-attn"]
    config = HypeNetConfig(**SHAPE, mixer_types=mixers, lightning_nkv=6, attn_use_rope=False)
    return HypeNetForCausalLM(config).eval()


def word_tokenizer(vocab: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer with the words t0, t1, ...: a word is a token."""
    words = {f"t{i}": i for i in range(vocab)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=f"t{vocab - 1}", pad_token="t0"
    )


def needle_requests(
    samples: int, num_tokens: int, vocab: int, new_tokens: int
) -> list[PromptRequest]:
    """Return greedy requests of `num_tokens` each, with needles at all depths."""
    rng = np.random.default_rng(0)
    haystack = rng.integers(0, vocab - 1, num_tokens - NEEDLE_TOKENS - QUESTION_TOKENS)
    how = Sampling(max_new_tokens=new_tokens, temperature=0.0, top_p=1.0, top_k=None, stop=())
    requests = []
    for sample in range(samples):
        depth = round(sample * (DEPTHS - 1) / (samples - 1))
        place = len(haystack) * depth // (DEPTHS - 1)
        needle, question = (rng.integers(0, vocab - 1, n) for n in (NEEDLE_TOKENS, QUESTION_TOKENS))
        tokens = np.concatenate([haystack[:place], needle, haystack[place:], question])
        key = SampleKey(task="needles", doc=sample, repeat=0)
        requests.append(
            PromptRequest(key=key, tokens=tokens.astype(np.int32), sampling=how, seed=None)
        )
    return requests


def timed(run: Callable[[], list[Answer]]) -> tuple[float, list[Answer]]:
    start = time.perf_counter()
    answers = run()
    return time.perf_counter() - start, answers


def peak_rss_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def real_requests(lengths: Sequence[int]) -> dict[int, list[PromptRequest]]:
    """Return the first prompts of niah_single_2, for a tokenizer with the models' vocabulary."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB, initial_alphabet=alphabet, show_progress=False)
    words = read_haystack(HAYSTACK).words
    backend.train_from_iterator([" ".join(words[:100_000])], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(f"{folder}/tokenizer")
        build = BuildPromptsRequest(
            tokenizer=Path(folder, "tokenizer"),
            lengths=tuple(lengths),
            tasks=("niah_single_2",),
            haystack=HAYSTACK,
            samples=SMALL_SAMPLES,
        )
        build_prompts(build, Path(folder, "prompts"))
        prompt_sets = open_prompt_sets(Path(folder, "prompts"), tokenizer)
    how = Sampling(max_new_tokens=SMALL_NEW_TOKENS, temperature=0.0, top_p=1.0, top_k=None, stop=())
    return {
        prompt_set.context_tokens: [
            PromptRequest(
                key=SampleKey(task=prompt_set.name, doc=i, repeat=0),
                tokens=prompt_set.tokens(i),
                sampling=how,
                seed=None,
            )
            for i in range(len(prompt_set))
        ]
        for prompt_set in prompt_sets
    }


def unequal_requests() -> list[PromptRequest]:
    """Return greedy requests of 1,000 to 2,000 random tokens for the laptop's HypeNet."""
    rng = np.random.default_rng(0)
    how = Sampling(max_new_tokens=128, temperature=0.0, top_p=1.0, top_k=None, stop=())
    return [
        PromptRequest(
            key=SampleKey(task="unequal", doc=i, repeat=0),
            tokens=rng.integers(0, LAPTOP_VOCAB, length).astype(np.int32),
            sampling=how,
            seed=None,
        )
        for i, length in enumerate(rng.integers(1000, 2000, 36).tolist())
    ]


def answer_in_turn(
    turns: Connection, name: str, requests: Sequence[PromptRequest], how: EngineOptions
) -> None:
    """Generate one answer per message and send its cost; at the end send the memory used."""
    torch.set_num_threads(1)
    engine = TransformersEngine(small_model(name), word_tokenizer(VOCAB), how)
    list(
        engine.generate(needle_requests(2, 4 * SMALL_CHUNK, LAPTOP_VOCAB, SMALL_NEW_TOKENS))
    )  # warm
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = peak_rss_mib()
    answers = engine.generate(requests)
    for _ in requests:
        turns.recv()
        wall, cpu = time.perf_counter(), time.process_time()
        answer = next(answers)
        spent = (time.perf_counter() - wall, time.process_time() - cpu)
        turns.send((spent, answer.key, answer.tokens))
    turns.send(peak_rss_mib() - before)


class Way:
    """A process that answers all requests with one configuration, one at a time on demand."""

    def __init__(self, name: str, requests: Sequence[PromptRequest], how: EngineOptions) -> None:
        context = multiprocessing.get_context("fork")
        self._turns, theirs = context.Pipe()
        self._process = context.Process(
            target=answer_in_turn, args=(theirs, name, requests, how), daemon=True
        )
        self._process.start()
        self.wall = self.cpu = 0.0
        self.tokens: dict[SampleKey, tuple[int, ...]] = {}

    def answer(self) -> None:
        self._turns.send(None)
        (wall, cpu), key, tokens = self._turns.recv()
        self.wall += wall
        self.cpu += cpu
        self.tokens[key] = tokens

    def peak_mib(self) -> float:
        peak: float = self._turns.recv()
        self._process.join()
        return peak


def computed_tokens(digests: Sequence[PromptDigest], *, share: bool) -> int:
    """Return how many prompt tokens are prefilled."""
    nodes = plan_prefixes(digests, SMALL_CHUNK, share=share)
    return prefill_tokens(nodes, leaves_of(nodes, digests, [0] * len(digests), share=share))


def print_cpu(lengths: Sequence[int]) -> None:
    if not HAYSTACK.exists():
        print(f"\nNot run: {HAYSTACK} is missing.")
        return
    print(
        f"\nThe first {SMALL_SAMPLES} prompts of niah_single_2, {SMALL_NEW_TOKENS} new tokens "
        f"each, prefilled in chunks of {SMALL_CHUNK} tokens,\nfloat32, one thread, batch size 1. "
        "*Full* prefills each prompt completely; *shared* prefills shared\nprefixes once. The two "
        "run in separate processes and answer in turn, so that other load on the\nmachine slows "
        "both equally. *Computed*: prefilled tokens. *Peak*: memory that answering added to the\n"
        "process.\n\n"
        "| model | mean prompt tokens | computed, full | shared | ratio | wall s full | shared "
        "| ratio (target 0.65) | CPU s full | shared | ratio | equal answers | peak MiB full | "
        "shared |\n"
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|"
    )
    prompts = real_requests(lengths)
    for name in ("HypeNet", "Qwen2"):
        for length in lengths:
            requests = prompts[length]
            digests = [PromptDigest.of(request.tokens, SMALL_CHUNK) for request in requests]
            computed = [computed_tokens(digests, share=share) for share in (False, True)]
            full, shared = (
                Way(name, requests, dataclasses.replace(ALONE, share_prefixes=share))
                for share in (False, True)
            )
            for _ in requests:
                full.answer()
                shared.answer()
            equal = sum(shared.tokens[key] == tokens for key, tokens in full.tokens.items())
            print(
                f"| {name} | {computed[0] // len(requests):,} | {computed[0]:,} | "
                f"{computed[1]:,} | "
                f"{computed[1] / computed[0]:.2f} | {full.wall:.1f} | {shared.wall:.1f} | "
                f"{shared.wall / full.wall:.2f} | {full.cpu:.1f} | {shared.cpu:.1f} | "
                f"{shared.cpu / full.cpu:.2f} | {equal} of {len(requests)} | "
                f"{full.peak_mib():.0f} | {shared.peak_mib():.0f} |",
                flush=True,
            )


def print_batches() -> None:
    """Answer prompts of unequal length with batch size 1 and in batches."""
    requests = unequal_requests()
    options = EngineOptions(device="cpu", prefill_chunk_tokens=512)
    alone = Way("laptop", requests, dataclasses.replace(options, max_rows=1))
    together = Way("laptop", requests, options)
    for _ in requests:
        alone.answer()
        together.answer()
    equal = sum(together.tokens[key] == tokens for key, tokens in alone.tokens.items())
    print(
        f"\n{len(requests)} prompts of 1,000 to 2,000 random tokens, 128 new tokens each, laptop "
        "HypeNet, random weights, float32, one thread: with batch size 1, and in batches.\n\n"
        "| wall s batch size 1 | in batches | ratio | CPU s batch size 1 | in batches | ratio | "
        "equal answers | peak MiB batch size 1 | in batches |\n"
        "|---|---|---|---|---|---|---|---|---|\n"
        f"| {alone.wall:.1f} | {together.wall:.1f} | {together.wall / alone.wall:.2f} | "
        f"{alone.cpu:.1f} | {together.cpu:.1f} | {together.cpu / alone.cpu:.2f} | "
        f"{equal} of {len(requests)} | {alone.peak_mib():.0f} | {together.peak_mib():.0f} |",
        flush=True,
    )


def lm_eval_answers(model: Any, vocab: int, requests: Sequence[PromptRequest]) -> list[str]:
    """Answer with lm-eval's `hf` model and batch size 1."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    new_tokens = requests[0].sampling.max_new_tokens
    harness = HFLM(
        pretrained=model,
        tokenizer=word_tokenizer(vocab),
        backend="causal",
        batch_size=1,
        max_length=len(requests[0].tokens) + new_tokens,
    )
    how = {"until": [], "do_sample": False, "temperature": 0.0, "max_gen_toks": new_tokens}
    instances = [
        Instance(
            request_type="generate_until",
            doc={},
            arguments=(" ".join(f"t{token}" for token in request.tokens), dict(how)),
            idx=i,
        )
        for i, request in enumerate(requests)
    ]
    texts: list[str] = harness.generate_until(instances, disable_tqdm=True)
    return texts


def our_answers(
    model: Any, tokenizer: Any, requests: Sequence[PromptRequest], *, share: bool
) -> list[str]:
    engine = TransformersEngine(model, tokenizer, EngineOptions(share_prefixes=share))
    answers = {answer.key: answer.text for answer in engine.generate(requests)}
    return [answers[request.key] for request in requests]


def peak_gib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return peak_rss_mib() / 1024


def print_large(size: str, lengths: Sequence[int], samples: int, new_tokens: int) -> None:
    """Answer prompts with random weights: shared prefixes, full prefill, lm-eval's `hf` model."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = load_model_config(size)
    config.eos_token_id = None  # random weights end at random
    with device:
        model: Any = HypeNetForCausalLM(config).to(torch.bfloat16).eval()
    endless = word_tokenizer(config.vocab_size)
    endless.eos_token = None
    where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(
        f"\nHypeNet {size}, random weights, bfloat16, {where}; {samples} prompts, {new_tokens} new "
        "tokens each, batch size 1 for long prompts. *Equal*: answers that equal those of the "
        "shared run word for word.\n\n"
        "| prompt tokens | method | s | prompt tokens/s | equal | peak GiB |\n"
        "|---|---|---|---|---|---|"
    )
    for num_tokens in lengths:
        requests = needle_requests(samples, num_tokens, config.vocab_size, new_tokens)
        ways: dict[str, Callable[[], list[str]]] = {
            "shared": partial(our_answers, model, endless, requests, share=True),
            "full": partial(our_answers, model, endless, requests, share=False),
            "lm-eval hf": partial(lm_eval_answers, model, config.vocab_size, requests),
        }
        first: list[str] = []
        for label, run in ways.items():
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            try:
                seconds, texts = timed(run)
            except torch.OutOfMemoryError:
                print(f"| {num_tokens:,} | {label} | out of memory | - | - | - |", flush=True)
                continue
            first = first or texts
            equal = sum(a == b for a, b in zip(first, texts, strict=True))
            print(
                f"| {num_tokens:,} | {label} | {seconds:.1f} | "
                f"{samples * num_tokens / seconds:,.0f} | {equal} of {samples} | "
                f"{peak_gib(device):.1f} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", metavar="SIZE", help="a HypeNet of this size on a CUDA GPU")
    parser.add_argument("--lengths", type=int, nargs="+", help="prompt tokens")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=128)
    arguments = parser.parse_args()
    print("## Engines")
    if arguments.gpu is None:
        print_cpu(arguments.lengths or SMALL_LENGTHS)
        print_batches()
        return
    if not torch.cuda.is_available() and arguments.gpu != "tiny":
        parser.error("--gpu needs a CUDA GPU; this machine has none")
    lengths = arguments.lengths or (32 * 1024, 256 * 1024)
    print_large(arguments.gpu, lengths, arguments.samples, arguments.new_tokens)


if __name__ == "__main__":
    main()
