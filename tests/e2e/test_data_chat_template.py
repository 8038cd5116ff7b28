"""`amnesia data prepare --chat template`: training on what the tokenizer's own template writes."""

import json
from pathlib import Path

import pytest

from amnesia_bench.cli.main import main
from amnesia_bench.data import open_store
from amnesia_bench.data.data_tokenizer import decoder
from tests.support.chat_templates import TEMPLATES, tokenizer_with
from tests.support.small_data import write_rows

CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bonn"}}}
ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"Is it cold, {i}?"},
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "content": "5 C"},
            {"role": "assistant", "content": f"<think>\n{i} is a number.\n</think>\n\nYes, {i}."},
        ]
    }
    for i in range(5)
]


def _texts(folder: Path) -> list[tuple[str, str]]:
    """Return the text of every document, and what of it is trained."""
    store, decode = open_store(folder), decoder(folder / "tokenizer.json")
    texts = []
    for i in range(store.num_sequences):
        sequence, begin = store.sequence(i), 0
        for length in sequence.document_lengths:
            tokens = sequence.tokens[begin : begin + length]
            mask, begin = sequence.loss_mask[begin : begin + length], begin + length
            if mask.any():
                texts.append((decode(tokens.tolist()), decode(tokens[mask].tolist())))
    return sorted(texts)


@pytest.mark.parametrize(
    ("config", "chat", "style"),
    [
        ("tulu3", [], "qwen3"),
        ("tulu3", ["--chat", "template"], "template"),
        ("messages", [], "template"),
    ],
)
def test_tool_calls_are_trained_as_the_template_writes_them(
    tmp_path: Path, config: str, chat: list[str], style: str
) -> None:
    tokenizer_with(tmp_path / "tokenizer", TEMPLATES["qwen3"])
    source, out = write_rows(tmp_path / "rows.jsonl", ROWS), tmp_path / "out"
    command = ["data", "prepare", config, "--tokenizer", str(tmp_path / "tokenizer")]
    command += ["--input", str(source), "--out", str(out), "data.sequence_tokens=512"]
    assert main([*command, *chat]) == 0
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bonn"}}\n</tool_call><|im_end|>'
    assert _texts(out) == [
        (
            f"<|im_start|>user\nIs it cold, {i}?<|im_end|>\n<|im_start|>assistant\n{call}\n"
            "<|im_start|>user\n<tool_response>\n5 C\n</tool_response><|im_end|>\n"
            f"<|im_start|>assistant\n<think>\n{i} is a number.\n</think>\n\nYes, {i}.<|im_end|>\n",
            f"{call}<think>\n{i} is a number.\n</think>\n\nYes, {i}.<|im_end|>",
        )
        for i in range(5)
    ]
    used = json.loads((out / "data.json").read_text())["config"]["chat"]["style"]
    assert used == style


def test_a_few_rows_that_the_template_cannot_write_are_dropped_and_the_first_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer_with(tmp_path / "tokenizer", TEMPLATES["gemma3"])
    rows = [{"question": f"q{i}", "answer": "a<end_of_turn>" if i == 7 else "a"} for i in range(40)]
    source = write_rows(tmp_path / "rows.jsonl", rows)
    command = ["data", "prepare", "prompt_response", "--tokenizer", str(tmp_path / "tokenizer")]
    command += ["--input", str(source), "--out", str(tmp_path / "out"), "data.sequence_tokens=64"]
    assert main(command) == 0
    assert len(_texts(tmp_path / "out")) == 39
    shown = capsys.readouterr()
    assert "dropped: special tokens of the chat in a message" in " ".join(shown.out.split())
    said = f"first dropped row: {source}:8: special tokens of the chat in a message"
    assert said in shown.err


def test_a_template_that_changed_is_not_answered_from_finished_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"question": f"q{i}", "response": f"<think>\nbecause {i}\n</think>\n\na{i}"}
        for i in range(5)
    ]
    tokenizer, out = tmp_path / "tokenizer", tmp_path / "out"
    tokenizer_with(tokenizer, TEMPLATES["r1_distill"])
    command = ["data", "prepare", "miromind", "--chat", "template", "--tokenizer", str(tokenizer)]
    command += ["--input", str(write_rows(tmp_path / "rows.jsonl", rows)), "--out", str(out)]
    command += ["data.sequence_tokens=256"]
    assert main(command) == 4
    assert "omits the reasoning of messages[1]" in " ".join(capsys.readouterr().err.split())
    template = tokenizer / "chat_template.jinja"
    template.write_text(template.read_text().replace(".split('</think>')[-1]", ""))
    assert main(command) == 0
    # The prompt has opened the block.
    expected = [f"because {i}\n</think>\n\na{i}</s>" for i in range(5)]
    assert [trained for _, trained in _texts(out)] == expected
