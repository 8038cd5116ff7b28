"""Read the turns of dataset rows: lists of messages, instructions, or prompt-response pairs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from amnesia_bench.config.data_schema import (
    AlpacaRows,
    ChatRows,
    Gsm8kRows,
    MessageRows,
    PromptResponseRows,
    QuestionResponseRows,
    ShareGptRows,
)
from amnesia_bench.data.dropped import DroppedRow, Reason
from amnesia_bench.data.tool_calls import Schema, name_of, tools
from amnesia_bench.data.turns import (
    CHAIN_FIELDS,
    WEIGHT_FIELDS,
    Turn,
    chain_fields,
    read_turn,
    weight,
)
from amnesia_bench.data.values import items, parse_nested_json, present, refuse_unknown, text_value
from amnesia_bench.errors import UserError
from amnesia_bench.tokenizers.chat_format import step_by_step

_LISTS = ("messages", "conversations", "conversation")
_SYSTEMS = ("system", "system_prompt", "custom_instructions")
_TOOLS = ("tools", "functions", "xml_tools")
_MEDIA = ("image", "images", "video", "videos", "audio", "audios")
# `loss` is not one of these, unlike in turns: as a column it records the loss of some model.
_WEIGHTS = (*WEIGHT_FIELDS, "sample_weight", "loss_mask", "train", "training", "trainable")
# Arguments of SmolLM3's chat template. `enable_thinking` is accepted but ignored, since the answers
# show whether thinking was enabled.
_TEMPLATE = "chat_template_kwargs"
_TEMPLATE_FIELDS = frozenset({"custom_instructions", "xml_tools", "tools", "enable_thinking"})
# In data for KTO, a boolean label tells whether an answer is good. Any other label names a class,
# which is irrelevant to training.
_LABEL = "label"
_EVERYWHERE = (*_SYSTEMS, *_TOOLS, *_MEDIA, *_WEIGHTS, _LABEL, _TEMPLATE)
_HISTORY = "history"
_INPUTS, _OUTPUTS = ("input", "context"), ("output", "response")
_CALCULATION = re.compile(r"<<[^<>]*>>")  # GSM8K writes "48/2 = <<48/2=24>>24"
_NUMBER_MARK = "####"
_TOOLS_IN_SYSTEM = re.compile(r"<tools>(.*?)</tools>", re.DOTALL)
OWN_FILES_HINT = (
    "Configs for your own files: messages or sharegpt (lists of turns), alpaca (instruction, "
    "input, output), prompt_response (any two fields: data.rows.prompt=[NAME] "
    "data.rows.response=[NAME])."
)


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns of a file that are read.

    A row must have at least one column of each group in `required`. `hint` is the hint of the error
    message about a missing column.
    """

    required: tuple[tuple[str, ...], ...]
    optional: tuple[str, ...] = ()
    hint: str = OWN_FILES_HINT

    @property
    def names(self) -> tuple[str, ...]:
        """All columns that are read."""
        return (*(name for names in self.required for name in names), *self.optional)


def row_columns(rows: ChatRows) -> Columns:
    """Return the columns from which rows of this form are read as conversations."""
    if isinstance(rows, MessageRows):
        return Columns(required=(_LISTS,), optional=_EVERYWHERE)
    if isinstance(rows, ShareGptRows):
        domain = () if rows.domain is None else (("domain",),)
        return Columns(required=(_LISTS, *domain), optional=_EVERYWHERE)
    if isinstance(rows, Gsm8kRows):
        return Columns(
            required=(("question",), ("answer",)),
            hint="GSM8K has the fields question and answer. " + OWN_FILES_HINT,
        )
    more = (_HISTORY, *CHAIN_FIELDS, *_EVERYWHERE)
    if isinstance(rows, AlpacaRows):
        return Columns(required=(("instruction",), _OUTPUTS), optional=(*_INPUTS, *more))
    return Columns(required=_pair(rows), optional=more)


def read_row(
    rows: ChatRows, row: Mapping[str, object], where: str
) -> tuple[list[Turn], tuple[Schema, ...]]:
    """Return the turns and the available tools of a row.

    Raises:
        UserError: a field is unknown, unusable or of the wrong type.
        DroppedRow: the row cannot be used for training.
    """
    fields = present(row)
    fields = {**_template(fields, where), **fields}
    _refuse_untrainable(fields, where)
    if isinstance(rows, MessageRows | ShareGptRows):
        domain = rows.domain if isinstance(rows, ShareGptRows) else None
        if domain is not None and text_value(fields.get("domain"), f"{where}: domain") != domain:
            raise DroppedRow(Reason.OTHER_DOMAIN)
        turns = _turns(_one_of(fields, _LISTS, where), "user", where)
    elif isinstance(rows, Gsm8kRows):
        turns = _grade_school_problem(rows, fields, where)
    else:
        final_turns = (
            _instruction(fields, where)
            if isinstance(rows, AlpacaRows)
            else _prompt_and_response(fields, _pair(rows), where)
        )
        turns = [*_history(fields, where), *final_turns]
    schemas = [schema for name in _TOOLS for schema in tools(fields.get(name), f"{where}: {name}")]
    turns = _with_system(turns, fields, where)
    return turns, _not_in_system(turns, tuple(schemas))


def _pair(rows: QuestionResponseRows | PromptResponseRows) -> tuple[tuple[str, ...], ...]:
    if isinstance(rows, PromptResponseRows):
        return rows.prompt, rows.response
    return ("question",), ("response",)


def _one_of(fields: Mapping[str, object], names: Sequence[str], where: str) -> tuple[str, object]:
    """Return the name and value of the only one of the columns that is present.

    If none is present, return the first name and None.

    Raises:
        UserError: more than one of the columns is present.
    """
    present_names = [name for name in names if name in fields]
    if len(present_names) > 1:
        raise UserError(
            f"{where}: has {' and '.join(present_names)}; only one of them can be used",
            hint="With prompt_response, choose: data.rows.prompt=[NAME] data.rows.response=[NAME]. "
            "Otherwise remove the other column from the file.",
        )
    name = present_names[0] if present_names else names[0]
    return name, fields.get(name)


def _turns(field: tuple[str, object], speaker: str, where: str) -> list[Turn]:
    """Read a field as a list of turns.

    In a list of plain texts, the first turn has the role `speaker`, and the roles alternate. An
    object of lists is accepted too, since `datasets` stores a Sequence of objects in this form.
    """
    name, value = field
    if isinstance(value, Mapping) and all(isinstance(column, list) for column in value.values()):
        columns = list(value.values())
        if len(set(map(len, columns))) > 1:
            raise UserError(f"{where}: the lists of {name} differ in length")
        value = [dict(zip(value, turn, strict=True)) for turn in zip(*columns, strict=True)]
    entries = items(value, f"{where}: {name}")
    if not all(isinstance(entry, str) for entry in entries):
        return [read_turn(entry, f"{where}: {name}[{i}]") for i, entry in enumerate(entries)]
    roles = ("user", "assistant") if speaker == "user" else ("assistant", "user")
    return [
        Turn(role=roles[i % 2], text=text_value(entry, f"{where}: {name}[{i}]"))
        for i, entry in enumerate(entries)
    ]


def _prompt_and_response(
    fields: Mapping[str, object], pair: Sequence[Sequence[str]], where: str
) -> list[Turn]:
    turns = []
    for names, role in zip(pair, ("user", "assistant"), strict=True):
        name, value = _one_of(fields, names, where)
        if isinstance(value, Mapping):
            value = [value]
        if isinstance(value, Sequence) and not isinstance(value, str | bytes):
            turns += _turns((name, value), role, where)
        else:
            turns.append(Turn(role=role, text=text_value(value, f"{where}: {name}")))
    others = {key: value for key, value in fields.items() if key not in {*pair[0], *pair[1]}}
    return _with_chains(turns, others, where)


def _instruction(fields: Mapping[str, object], where: str) -> list[Turn]:
    context = text_value(_one_of(fields, _INPUTS, where)[1], f"{where}: input")
    instruction = text_value(fields.get("instruction"), f"{where}: instruction")
    question = "\n".join(part for part in (instruction, context) if part)
    answer = text_value(_one_of(fields, _OUTPUTS, where)[1], f"{where}: output")
    turns = [Turn(role="user", text=question), Turn(role="assistant", text=answer)]
    return _with_chains(turns, fields, where)


def _grade_school_problem(rows: Gsm8kRows, fields: Mapping[str, object], where: str) -> list[Turn]:
    """Return the turns of a row of GSM8K; see `Gsm8kRows`."""
    question = text_value(fields.get("question"), f"{where}: question")
    text = text_value(fields.get("answer"), f"{where}: answer")
    chain, mark, number = _CALCULATION.sub("", text).rpartition(_NUMBER_MARK)
    if not mark or not number.strip():
        raise DroppedRow(Reason.NO_ANSWER)
    if rows.response == "chain" and not chain.strip():
        raise DroppedRow(Reason.NO_CHAIN)
    steps = [chain.strip()] if rows.response == "chain" else []
    answer = "\n".join([*steps, f"\\boxed{{{number.strip()}}}"])
    return [
        Turn(role="user", text=step_by_step(question) if question.strip() else ""),
        Turn(role="assistant", text=answer),
    ]


def _history(fields: Mapping[str, object], where: str) -> list[Turn]:
    """Return the earlier turns, which LLaMA-Factory and ms-swift store as pairs in a column."""
    turns = []
    for i, pair in enumerate(items(fields.get(_HISTORY), f"{where}: {_HISTORY}")):
        at = f"{where}: {_HISTORY}[{i}]"
        texts = items(pair, at)
        if len(texts) != 2:
            raise UserError(f"{at}: {len(texts)} items, expected a question and an answer")
        turns += [
            Turn(role=role, text=text_value(text, at))
            for role, text in zip(("user", "assistant"), texts, strict=True)
        ]
    return turns


def _with_chains(turns: list[Turn], fields: Mapping[str, object], where: str) -> list[Turn]:
    """Add the chains of thought from separate columns to the last turn."""
    if not (chains := chain_fields(fields, where)):
        return turns
    return [*turns[:-1], replace(turns[-1], chains=(*turns[-1].chains, *chains))]


def _with_system(turns: list[Turn], fields: Mapping[str, object], where: str) -> list[Turn]:
    """Prepend the system message from a separate column."""
    columns = [text_value(fields.get(name), f"{where}: {name}") for name in _SYSTEMS]
    systems = [system for system in columns if system.strip()]
    own = [turn.text for turn in turns[:1] if turn.role == "system"]
    if len({system.strip() for system in (*systems, *own)}) > 1:
        raise DroppedRow(Reason.TWO_SYSTEMS)
    if own or not systems:
        return turns
    return [Turn(role="system", text=systems[0]), *turns]


def _not_in_system(turns: list[Turn], schemas: tuple[Schema, ...]) -> tuple[Schema, ...]:
    """Return the tools, or no tools if the system message lists them all.

    Hermes' datasets list the tools in the system message.
    """
    system = turns[0].text if turns and turns[0].role == "system" else ""
    listed = "".join(_TOOLS_IN_SYSTEM.findall(system)).replace("'", '"')
    return () if all(f'"{name_of(tool)}"' in listed for tool in schemas) else schemas


def _template(fields: Mapping[str, object], where: str) -> dict[str, object]:
    value, at = fields.get(_TEMPLATE), f"{where}: {_TEMPLATE}"
    if isinstance(value, str):
        value = parse_nested_json(value, at)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise UserError(f"{at} is of type {type(value).__name__}, expected an object")
    refuse_unknown(value, _TEMPLATE_FIELDS, at)
    return present(value)


def _refuse_untrainable(fields: Mapping[str, object], where: str) -> None:
    for name in _MEDIA:
        if name in fields:
            raise UserError(
                f"{where}: has {name}; only text can be trained on",
                hint="Remove rows with images, audio and video.",
            )
    excluded = [
        name for name in _WEIGHTS if name in fields and not weight(fields[name], f"{where}: {name}")
    ]
    excluded += [_LABEL] if fields.get(_LABEL) is False else []
    if excluded:
        raise UserError(
            f"{where}: {excluded[0]} is {fields[excluded[0]]}",
            hint="Remove rows that must not be trained on.",
        )
