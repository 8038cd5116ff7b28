"""Time of answers with and without shared prefixes: python scripts/bench_engines.py [--gpu SIZE].

Prints Markdown. Prompts are shaped as those of niah_single_2: one haystack of random tokens, a
needle at one of 40 depths, a question. `--gpu` runs random weights of a HypeNet of that size, and
lm-eval's own `hf` model on the same prompts.
"""

import argparse
import gc
import multiprocessing
import resource
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from amnesia_bench.evals.engines.options import EngineOptions
from amnesia_bench.evals.engines.protocol import Request
from amnesia_bench.evals.engines.transformers_engine import TransformersEngine
from amnesia_bench.modeling import HypeNetConfig, HypeNetForCausalLM
from amnesia_bench.modeling.named_configs import load_model_config
from amnesia_bench.records.evaluation import SampleKey, Sampling

Answer = TypeVar("Answer")
Answer = TypeVar("Answer")

NEEDLE_TOKENS, QUESTION_TOKENS, DEPTHS = 24, 40, 40
VOCAB = 4096
# Narrow heads beside a wide MLP: at 8K softmax attention then takes about the share of the work
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
SMALL_CHUNK, SMALL_NEW_TOKENS = 128, 8


def small_model(name: str) -> Any:
    """Build the model of a CPU run."""
    torch.manual_seed(0)
    if name == "Qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**SHAPE)).eval()
    mixers = ["lightning-attn", "attn", "lightning-attn", "lightning-attn"]
    config = HypeNetConfig(**SHAPE, mixer_types=mixers, lightning_nkv=6, attn_use_rope=False)
    return HypeNetForCausalLM(config).eval()


def word_tokenizer(vocab: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer of the words t0, t1, ...: texts and tokens say the same thing."""
    words = {f"t{i}": i for i in range(vocab)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=f"t{vocab - 1}", pad_token="t0"
    )


def needle_requests(samples: int, num_tokens: int, vocab: int, new_tokens: int) -> list[Request]:
    """Return greedy requests of `num_tokens` each, their needles spread over the depths."""
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
        requests.append(Request(key=key, tokens=tokens.astype(np.int32), sampling=how, seed=None))
    return requests


def timed(run: Callable[[], list[Answer]]) -> tuple[float, list[Answer]]:
    start = time.perf_counter()
    answers = run()
    return time.perf_counter() - start, answers


def peak_rss_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure_small(name: str, num_tokens: int, share: bool, results: Any) -> None:
    """Answer 40 prompts in this process, which has done nothing else."""
    torch.set_num_threads(1)
    options = EngineOptions(
        device="cpu",
        share_prefixes=share,
        prefill_chunk_tokens=SMALL_CHUNK,
        max_batch_tokens=1,
    )
    engine = TransformersEngine(small_model(name), word_tokenizer(VOCAB), options)
    requests = needle_requests(DEPTHS, num_tokens, VOCAB, SMALL_NEW_TOKENS)
    before, start = peak_rss_mib(), time.process_time()
    seconds, answers = timed(lambda: list(engine.generate(requests)))
    cpu_seconds = time.process_time() - start
    tokens = {answer.key: answer.tokens for answer in answers}
    results.put((seconds, cpu_seconds, peak_rss_mib() - before, tokens))


def in_own_process(*arguments: Any) -> Any:
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    process = context.Process(target=measure_small, args=(*arguments, results))
    process.start()
    found = results.get()
    process.join()
    return found


def print_cpu(lengths: Sequence[int]) -> None:
    print(
        f"\n{DEPTHS} prompts, a needle at each of {DEPTHS} depths, {SMALL_NEW_TOKENS} new tokens, "
        f"pieces of {SMALL_CHUNK} tokens, float32, one thread, one row at a time, each way in a "
        "process of its own. CPU seconds leave out what neighbours on the machine take. Peak: what "
        "answering added to the process.\n\n"
        "| model | prompt tokens | full s | shared s | shared / full (target 0.65) | the same in "
        "CPU seconds | equal answers | peak MiB full | shared |\n"
        "|---|---|---|---|---|---|---|---|---|"
    )
    for name in ("HypeNet", "Qwen2"):
        for num_tokens in lengths:
            full, full_cpu, full_mib, expected = in_own_process(name, num_tokens, False)
            shared, shared_cpu, shared_mib, found = in_own_process(name, num_tokens, True)
            equal = sum(found[key] == tokens for key, tokens in expected.items())
            print(
                f"| {name} | {num_tokens:,} | {full:.1f} | {shared:.1f} | {shared / full:.2f} | "
                f"{shared_cpu / full_cpu:.2f} | {equal} of {len(expected)} | {full_mib:.0f} | "
                f"{shared_mib:.0f} |",
                flush=True,
            )


def lm_eval_answers(model: Any, vocab: int, requests: Sequence[Request]) -> list[str]:
    """Answer with lm-eval's `hf` model, one row at a time."""
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
    model: Any, tokenizer: Any, requests: Sequence[Request], *, share: bool
) -> list[str]:
    engine = TransformersEngine(model, tokenizer, EngineOptions(share_prefixes=share))
    answers = {answer.key: answer.text for answer in engine.generate(requests)}
    return [answers[request.key] for request in requests]


def peak_gib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return peak_rss_mib() / 1024


def print_large(size: str, lengths: Sequence[int], samples: int, new_tokens: int) -> None:
    """Answer prompts with random weights, shared, in full and by lm-eval's `hf` model."""
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
        "tokens each, one row at a time where the prompts are long. Equal: answers that are those "
        "of the shared run, word by word.\n\n"
        "| prompt tokens | how | s | prompt tokens/s | equal | peak GiB |\n"
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
        print_cpu(arguments.lengths or (2048, 4096, 8192))
        return
    if not torch.cuda.is_available() and arguments.gpu != "tiny":
        parser.error("--gpu needs a CUDA GPU; this machine has none")
    lengths = arguments.lengths or (32 * 1024, 256 * 1024)
    print_large(arguments.gpu, lengths, arguments.samples, arguments.new_tokens)


if __name__ == "__main__":
    main()
