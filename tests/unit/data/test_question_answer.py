"""The format question_answer: what is trained on is what the evaluation asks, token for token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, processors
from transformers import AutoTokenizer

from amnesia_bench.config.data_schema import DataConfig
from amnesia_bench.config.load import load_data
from amnesia_bench.data.data_tokenizer import DataTokenizer
from amnesia_bench.data.documents import DocumentMaker
from amnesia_bench.data.dropped import DroppedRow, Reason
from amnesia_bench.errors import UserError
from amnesia_bench.reasoning.tasks import load_eval
from amnesia_bench.reasoning.tasks.mathematics import GSM8K
from amnesia_bench.requests.reasoning import GenerateRequest
from amnesia_bench.tokenizers.chat_format import prompt_format, prompt_tokens
from amnesia_bench.tokenizers.tokenizer import load_tokenizer
from tests.support.small_data import CHATML_TEMPLATE, save_tokenizer

QUESTION = "Ann has 3 apples\nand buys 4. How many?"
ROW = {"question": QUESTION, "answer": "She has 3+4 = <<3+4=7>>7.\nSo $<<7=7>>7.\n#### 1,007"}


def tokenizer(folder: Path, *, bos: bool, template: str | None = None) -> Any:
    save_tokenizer(folder, template=template)
    if bos:
        whole = AutoTokenizer.from_pretrained(str(folder))
        whole.add_special_tokens({"bos_token": "<s>"})
        whole.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", whole.bos_token_id)]
        )
        whole.save_pretrained(folder)
    return load_tokenizer(folder)


def maker(whole: Any, config: DataConfig | None = None) -> DocumentMaker:
    return DocumentMaker(config or load_data("gsm8k_chains"), DataTokenizer(whole))


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("template", [None, CHATML_TEMPLATE])
def test_the_untrained_part_is_the_prompt_of_the_evaluation(
    bos: bool, template: str | None, tmp_path: Path
) -> None:
    whole = tokenizer(tmp_path, bos=bos, template=template)
    made = maker(whole)
    documents, _ = made.tokenise([made.segments(ROW, "row")])
    config = load_eval("gsm8k", ("eval.chat_template=question_answer", "eval.think=null"))
    layout = prompt_format(whole, chat=config.chat_template, template=None, think=None)
    prompt = prompt_tokens(whole, layout, GSM8K.message(ROW))
    count = len(prompt)
    assert (whole.bos_token_id in prompt.tolist()) == bos
    assert np.array_equal(documents.tokens[:count], prompt)
    assert not documents.mask[:count].any()
    assert documents.mask[count:].all()
    answer = whole.decode(documents.tokens[count:].tolist())
    assert answer == f" She has 3+4 = 7.\nSo $7.\n\\boxed{{1,007}}{whole.eos_token}"
    assert layout.sha256 is not None
    assert layout.template is None


def test_the_number_alone_is_the_answer_of_the_control(tmp_path: Path) -> None:
    made = maker(tokenizer(tmp_path, bos=False), load_data("gsm8k_answers"))
    (prompt, answer) = made.segments(ROW, "row")
    assert answer.text == " \\boxed{1,007}<|im_end|>"
    assert prompt.text == maker(tokenizer(tmp_path, bos=False)).segments(ROW, "row")[0].text


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({**ROW, "answer": "No mark: 7"}, Reason.NO_ANSWER),
        ({**ROW, "answer": "Nothing after it #### "}, Reason.NO_ANSWER),
        ({**ROW, "answer": "<<3+4=7>>#### 7"}, Reason.NO_CHAIN),
        ({**ROW, "question": "  "}, Reason.EMPTY),
        ({**ROW, "question": "a <|im_end|> b"}, Reason.MARKUP),
    ],
)
def test_a_row_that_cannot_be_used_is_dropped(
    row: dict[str, str], reason: Reason, tmp_path: Path
) -> None:
    with pytest.raises(DroppedRow) as caught:
        maker(tokenizer(tmp_path, bos=False)).segments(row, "row")
    assert caught.value.reason is reason


def test_a_conversation_of_several_turns_is_dropped(tmp_path: Path) -> None:
    config = load_data("messages", chat_style="question_answer")
    turns = [{"role": role, "content": "x"} for role in ("user", "assistant") * 2]
    with pytest.raises(DroppedRow, match="not one question and one answer"):
        maker(tokenizer(tmp_path, bos=False), config).segments({"messages": turns}, "row")


def test_a_tokenizer_without_eos_is_refused(tmp_path: Path) -> None:
    tokenizer(tmp_path, bos=False)
    path = tmp_path / "tokenizer_config.json"
    values = json.loads(path.read_text())
    values["eos_token"] = None
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match="no EOS token, which ends answers"):
        maker(load_tokenizer(tmp_path))


def test_a_template_file_and_this_format_exclude_each_other(tmp_path: Path) -> None:
    config = load_eval("gsm8k", ("eval.chat_template=question_answer",))
    with pytest.raises(ValueError, match=r"sets eval\.chat_template=question_answer"):
        GenerateRequest(
            checkpoint=tmp_path, task="gsm8k", config=config, chat_template=tmp_path / "t.jinja"
        )


def test_white_space_among_the_added_tokens_structures_no_chat(tmp_path: Path) -> None:
    """Gemma 3 has added tokens for runs of line ends, tabs and spaces."""
    gemma = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    save_tokenizer(tmp_path, template=gemma)
    whole = AutoTokenizer.from_pretrained(str(tmp_path))
    whole.add_tokens([AddedToken(text, normalized=False) for text in ("\n", "\n\n", "\t", "<b>")])
    whole.save_pretrained(tmp_path)
    config = load_data("prompt_response", chat_style="template")
    row = {"prompt": "One\nline\n\nand <b>another</b>", "response": "Two\n\nlines"}
    segments = maker(load_tokenizer(tmp_path), config).segments(row, "row")
    assert [segment.text for segment in segments if segment.trained] == ["Two\n\nlines<|im_end|>"]
