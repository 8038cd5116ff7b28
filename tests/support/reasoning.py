"""Eight problems of each reasoning task, a tokenizer with a chat template, and answers to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from amnesia_bench.comparison.comparing import compare
from amnesia_bench.config.eval_schema import EvalConfig
from amnesia_bench.config.load import load_option
from amnesia_bench.inference.generation import GENERATIONS, RUN, read_run_record
from amnesia_bench.inference.protocol import Engine, PromptRequest
from amnesia_bench.reasoning.answering import AnswerPlan, answer_problems
from amnesia_bench.reasoning.documents import task_documents, window_of
from amnesia_bench.reasoning.score import Scored, score
from amnesia_bench.reasoning.tasks import task_named
from amnesia_bench.records.comparison import MetricComparison
from amnesia_bench.records.evaluation import Generation
from amnesia_bench.requests.comparison import CompareRequest
from amnesia_bench.requests.reasoning import ScoreRequest
from amnesia_bench.store.sealed_json import unseal
from amnesia_bench.tokenizers.chat_format import prompt_format
from tests.support import lcb
from tests.support.pico import PICOS

PROBLEMS = 8
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKING = CHATML.replace("assistant\n", "assistant\n<think>\n")
SPECIAL = ("<|end|>", "<|im_start|>", "<|im_end|>")


def problem(task: str, i: int) -> dict[str, Any]:
    """Return a problem whose answer is i + 2, or a program that adds it, or so many words."""
    if task == "gsm8k":
        return {"question": f"What is {i} + 2?", "answer": f"{i} + 2 = {i + 2}\n#### {i + 2}"}
    if task == "ifeval":
        return {
            "key": 1000 + i,
            "prompt": f"Write at least {i + 2} words, and no comma.",
            "instruction_id_list": ["length_constraints:number_words", "punctuation:no_comma"],
            "kwargs": [{"relation": "at least", "num_words": i + 2}, {}],
        }
    if task == "livecodebench":
        return lcb.row(f"add {i + 2}", [("1\n", f"{i + 3}\n"), ("5\n", f"{i + 7}\n")])
    return {"problem": f"What is ${i} + 2$?", "answer": f"{i + 2}", "solution": "It is.", "id": i}


def write_problems(task: str, path: Path, count: int = PROBLEMS) -> Path:
    """Write a local data file of a task."""
    lines = (json.dumps(problem(task, i)) + "\n" for i in range(count))
    path.write_text("".join(lines))
    return path


def byte_tokenizer(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """Return a tokenizer whose tokens are bytes and three special ones."""
    alphabet = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    words = {word: i for i, word in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(words, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=SPECIAL[0])
    fast.chat_template = template
    return fast


def tiny_checkpoint(folder: Path) -> Path:
    """Save a model of random weights that reads bytes."""
    torch.manual_seed(0)
    pico = PICOS["mistral"]
    sizes = {"vocab_size": 259, "max_position_embeddings": 32768}
    config = AutoConfig.for_model(pico.model_type, **{**pico.config, **sizes})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def config_of(task: str, *overrides: str) -> EvalConfig:
    """Load a task's config; with three repeats where it has several."""
    fewer = [] if task == "ifeval" else ["eval.repeats=3"]
    return load_option("eval", task, [*fewer, *overrides], task_named(task).config)


def answer(request: PromptRequest) -> str:
    """Answer right or wrong, in one form or another, or not at all: as the seed or place says."""
    key = request.key
    if key.task == "ifeval":
        return "one two three four five six" if key.doc % 2 else "one, two"
    turn = (request.seed or 0) % 4
    right = key.doc + 2
    if key.task == "livecodebench":
        added = (right, right, right + 1, 0)[turn]
        return f"So:\n```python\nprint(int(input()) + {added})\n```" if added else "No idea."
    return (
        f"It is \\boxed{{{right}}}.",
        f"It is \\boxed{{{2 * right}/2}}.",
        f"It is \\boxed{{{right + 1}}}.",
        f"It is {right}, or so.",
    )[turn]


def without_checksums(folder: Path) -> dict[str, str]:
    """Make a folder of answers what an older version wrote; return the record of its run."""
    run = dict(read_run_record(folder).depends)
    lines = [unseal(line) for line in (folder / GENERATIONS).read_text().splitlines()]
    (folder / GENERATIONS).write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (folder / RUN).write_text(json.dumps(run))
    return run


def run_task(
    task: str, data: Path, folder: Path, engine: Engine, *overrides: str, template: str = CHATML
) -> tuple[Generation, ...]:
    """Answer a task's problems with an engine, as the command does."""
    known, tokenizer, config = (
        task_named(task),
        byte_tokenizer(template),
        config_of(task, *overrides),
    )
    layout = prompt_format(tokenizer, chat=config.chat_template, template=None, think=config.think)
    plan = AnswerPlan(
        model="fake", method="+SFT", checkpoint="sha256:0", config=config, layout=layout
    )
    problems = task_documents(known, data, None, window_of(config))
    return answer_problems(engine, tokenizer, known, problems, plan, folder).generations


def score_answers(folder: Path, scorer: str | None = None, **fields: Any) -> Scored:
    """Score a folder of answers."""
    return score(ScoreRequest(answers=folder, scorer=scorer, **fields))


def compare_answers(first: Path, second: Path) -> tuple[MetricComparison, ...]:
    """Compare two folders of scored answers."""
    return compare(CompareRequest(a=first, b=second)).rows
