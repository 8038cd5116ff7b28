"""A tokenizer of a few hundred tokens and small files of rows, for tests of training data."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import amnesia_bench as ab
from amnesia_bench.config.data_schema import DataConfig
from amnesia_bench.records.data import DataDescription
from amnesia_bench.requests.data import PrepareRequest

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>")

QWEN3_TEMPLATE = (
    "{%- set ns = namespace(last=-1) %}{%- for m in messages %}{%- if m.role == 'user' %}"
    "{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}"
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' }}"
    "{%- if m.role == 'assistant' %}{%- set c = m.content %}{%- set r = '' %}"
    "{%- if '</think>' in c %}"
    "{%- set r = c.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}"
    "{%- set c = c.split('</think>')[-1].lstrip('\\n') %}{%- endif %}"
    "{%- if loop.index0 > ns.last %}"
    "{{- '<think>\\n' + r.strip('\\n') + '\\n</think>\\n\\n' + c.lstrip('\\n') }}"
    "{%- else %}{{- c }}{%- endif %}{%- else %}{{- m.content }}{%- endif %}"
    "{{- '<|im_end|>\\n' }}{%- endfor %}"
)
CHATML_TEMPLATE = (
    "{%- if messages[0].role != 'system' %}"
    "{{- '<|im_start|>system\\nYou are kind.<|im_end|>\\n' }}{%- endif %}"
    "{%- for m in messages %}"
    "{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endfor %}"
)
MISTRAL_TEMPLATE = (
    "{{- '<s>' }}{%- for m in messages %}{%- if m.role == 'user' %}"
    "{{- '[INST] ' + m.content + '[/INST]' }}{%- else %}"
    "{{- ' ' + m.content | trim + '</s>' }}{%- endif %}{%- endfor %}"
)


def save_tokenizer(folder: Path, *, template: str | None = None, extra: str | None = None) -> Path:
    """Save a byte-level tokenizer without merges: one token a byte, and the special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[])
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in SPECIALS])
    marks = ["[INST]", "[/INST]", "<think>", "</think>", *([extra] if extra else [])]
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in marks])
    whole = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    whole.chat_template = template
    whole.save_pretrained(folder)
    return folder


def data_config(**changes: Any) -> DataConfig:
    """Return a small config of CoT rows, with changes."""
    values = {
        "name": "small",
        "source": {"kind": "hub", "dataset": "a/b", "subsets": ["default"], "split": "train",
                   "revision": None, "skip_files": 0, "take_files": None},
        "rows": {"kind": "question_response"},
        "chat": {"style": "qwen3", "loss_on": "assistant"},
        "pack": "best_fit", "over_length": "drop", "sequence_tokens": 256,
        "isolate_documents": True, "sample_rows": 1.0, "max_dropped": 0.05, "seed": 0,
    }  # fmt: skip
    return DataConfig.model_validate_json(json.dumps(values | changes))


def prepare(
    config: DataConfig, tokenizer: Path, out: Path, inputs: Sequence[Path] = (), **options: Any
) -> DataDescription:
    """Prepare data by the front door."""
    request = PrepareRequest(config=config, tokenizer=tokenizer, inputs=tuple(inputs))
    return ab.prepare(request, out, **options)


TEXT = {"rows": {"kind": "text", "fields": ["text"], "separator": "<|endoftext|>"}, "chat": None,
        "pack": "concat", "over_length": None, "isolate_documents": False}  # fmt: skip


def cot_row(i: int) -> dict[str, str]:
    """Return a row whose length depends on its number."""
    steps = "\n".join(f"{i} + {k} = {i + k}" for k in range(i % 7 + 1))
    return {
        "question": f"What comes of {i}? Ünïcode {i * i}",
        "response": f"<think>\n{steps}\n</think>\n\nIt is {i}.",
    }


def write_rows(path: Path, rows: list[Any]) -> Path:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path
