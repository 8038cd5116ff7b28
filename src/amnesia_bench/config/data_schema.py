"""Schema of configs/data: one data source, and how its rows are converted to sequences."""

from __future__ import annotations

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from amnesia_bench.config.cache_key import NEUTRAL
from amnesia_bench.config.schema import Frozen


class HubSource(Frozen):
    """Files of a dataset on the Hugging Face hub.

    `revision` must be a commit, because a branch may change; if it is missing, the error message of
    `prepare` explains how to find it. The files of each subset are sorted by name, the first
    `skip_files` are skipped, and the next `take_files` are used (null: all remaining files).
    Training stages can thus use different files of one dataset. `tokens` is the approximate number
    of tokens, for estimates of disk space; null assumes 10^9.
    """

    kind: Literal["hub"] = "hub"
    dataset: str
    subsets: Annotated[tuple[str, ...], Field(min_length=1)]
    split: str = "train"
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None
    skip_files: NonNegativeInt = 0
    take_files: PositiveInt | None = None
    tokens: Annotated[PositiveInt | None, NEUTRAL] = None


# The generators of `amnesia_bench.data.synthetic`; those in `Sized` have a configurable row length.
Sized = Literal["prose", "haystack", "mathematics", "short_instructions", "long_instructions"]
Unsized = Literal[
    "copies",
    "varied_copies",
    "word_problems",
    "conversations",
    "programs",
    "test_problems",
    "facts",
    "choices",
]


class SyntheticSource(Frozen):
    """Generated rows, which are identical on every machine.

    `words` is the approximate number of words per row. It must be null for generators whose row
    length is not configurable.
    """

    kind: Literal["synthetic"] = "synthetic"
    generator: Literal[Sized, Unsized]
    rows: PositiveInt
    words: PositiveInt | None = None
    seed: NonNegativeInt = 0

    @model_validator(mode="after")
    def _words_where_they_count(self) -> Self:
        if (self.words is not None) != (self.generator in get_args(Sized)):
            needs = "takes no words: null" if self.words is not None else "needs words"
            raise ValueError(f"generator {self.generator} {needs}")
        return self


class FilesSource(Frozen):
    """The user's own files, passed with `--input`."""

    kind: Literal["files"] = "files"


Source = Annotated[HubSource | SyntheticSource | FilesSource, Field(discriminator="kind")]


class TextRows(Frozen):
    """Each row is one document: the text in the first of `fields` that is present in the row.

    `separator` is appended to each document; it is a special token, or `eos` for the tokenizer's
    EOS token.
    """

    kind: Literal["text"] = "text"
    fields: Annotated[tuple[str, ...], Field(min_length=1)]
    separator: Annotated[str, Field(min_length=1)]


class QuestionResponseRows(Frozen):
    """Each row has `question` and `response`; the response begins with one think block."""

    kind: Literal["question_response"] = "question_response"


class ShareGptRows(Frozen):
    """Each row has `conversations`, a list of turns; each answer has a think block.

    The turns have the same format as in `MessageRows`. Only rows whose field `domain` equals
    `domain` are kept; null keeps all rows.
    """

    kind: Literal["sharegpt"] = "sharegpt"
    domain: str | None


class MessageRows(Frozen):
    """Each row has a list of turns in `messages`, `conversations` or `conversation`.

    Each turn is {role, content} or {from, value}. Answers may have a think block.
    """

    kind: Literal["messages"] = "messages"


class AlpacaRows(Frozen):
    """Each row has `instruction` and `output`, and optionally `input` and `history`.

    The question consists of the instruction and, on the next line, the input. `history` is a list
    of earlier [question, answer] pairs. Answers may have a think block.
    """

    kind: Literal["alpaca"] = "alpaca"


class PromptResponseRows(Frozen):
    """Each row has one of the fields in `prompt` and one of the fields in `response`.

    The value of each is a string or a list of turns. Answers may have a think block.
    """

    kind: Literal["prompt_response"] = "prompt_response"
    prompt: Annotated[tuple[str, ...], Field(min_length=1)]
    response: Annotated[tuple[str, ...], Field(min_length=1)]


class Gsm8kRows(Frozen):
    """Each row has `question` and `answer`, as in GSM8K: a chain of thought, then `#### NUMBER`.

    The question becomes the message of the benchmark gsm8k, with its instruction, and the number is
    put into a box, as that instruction says. `chain` is the response with the chain, without the
    calculator annotations `<<48/2=24>>`; `number` is the response without the chain.
    """

    kind: Literal["gsm8k"] = "gsm8k"
    response: Literal["chain", "number"]


ChatRows = (
    QuestionResponseRows | ShareGptRows | MessageRows | AlpacaRows | PromptResponseRows | Gsm8kRows
)
Rows = Annotated[TextRows | ChatRows, Field(discriminator="kind")]

# Which tokens of a conversation contribute to the loss: only those of the answers, or all.
LossOn = Literal["assistant", "all"]


class TemplateChat(Frozen):
    """The tokenizer's own chat template."""

    style: Literal["template"] = "template"
    loss_on: LossOn


class Qwen3Chat(Frozen):
    """ChatML as in Qwen3's template: think blocks before the last user message are removed.

    The last answer always has a think block, which is empty if the data has no thinking for it.
    """

    style: Literal["qwen3"] = "qwen3"
    loss_on: LossOn


class ChatML(Frozen):
    """ChatML that keeps all answers unchanged, including their think blocks.

    `default_system` is the system message for conversations that have none.
    """

    style: Literal["chatml"] = "chatml"
    default_system: str | None = None
    loss_on: LossOn


class MistralChat(Frozen):
    """`<s>[INST] question[/INST] answer</s>`, without system messages."""

    style: Literal["mistral"] = "mistral"
    loss_on: LossOn


class Llama3Chat(Frozen):
    """`<|start_header_id|>role<|end_header_id|>` and `<|eot_id|>`, as in Llama 3.0's template."""

    style: Literal["llama3"] = "llama3"
    loss_on: LossOn


class QuestionAnswerChat(Frozen):
    """`Question: ...`, and on the next line `Answer: ...`, for base models without a template.

    The document begins with the special tokens that the tokenizer puts before a text (BOS), and
    ends with its EOS token. The prompt is the one that `eval.chat_template=question_answer` gives.
    A conversation has one question and one answer; a chat template is ignored.
    """

    style: Literal["question_answer"] = "question_answer"
    loss_on: Literal["assistant"]


Chat = Annotated[
    TemplateChat | Qwen3Chat | ChatML | MistralChat | Llama3Chat | QuestionAnswerChat,
    Field(discriminator="style"),
]

# best_fit packs complete documents by best-fit decreasing within windows of shuffled documents.
# concat joins the documents and cuts them wherever a sequence is full. single puts one document in
# each sequence, for models that cannot isolate packed documents.
Pack = Literal["best_fit", "concat", "single"]

# How to handle a document that is longer than a sequence.
OverLength = Literal["drop", "truncate", "split"]


class DataConfig(Frozen):
    """One data source, and how it is prepared.

    `over_length` must be null for pack concat, which may cut any document. `sample_rows` is the
    share of rows to use, sampled with `seed`. The preparation fails if more than the share
    `max_dropped` of these rows are unusable; over-length documents do not count as unusable.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$"), NEUTRAL]
    source: Source
    rows: Rows
    chat: Chat | None = None
    pack: Pack
    over_length: OverLength | None = None
    sequence_tokens: PositiveInt
    isolate_documents: bool
    sample_rows: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_dropped: Annotated[float, Field(ge=0, le=1)] = 0.05
    seed: NonNegativeInt = 0

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if (self.chat is None) != (self.rows.kind == "text"):
            needs = "takes no chat" if self.rows.kind == "text" else "needs a chat"
            raise ValueError(f"rows of kind {self.rows.kind}: {needs}")
        if (self.over_length is None) != (self.pack == "concat"):
            raise ValueError(
                "pack concat cuts documents anywhere: over_length: null"
                if self.pack == "concat"
                else f"pack {self.pack} needs over_length: drop, truncate or split"
            )
        return self


def with_style(config: DataConfig, style: str) -> dict[str, object]:
    """Return the values of `config` with chat style `style`, to be validated by the caller."""
    values = config.model_dump()
    if config.chat is None or config.chat.style != style:
        loss_on = "assistant" if config.chat is None else config.chat.loss_on
        values["chat"] = {"style": style, "loss_on": loss_on}
    return values
