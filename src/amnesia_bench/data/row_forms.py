"""Rows of datasets as turns: lists of messages, instructions, pairs of prompt and response."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from amnesia_bench.config.data_schema import (
    AlpacaRows,
    ChatRows,
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

_LISTS = ("messages", "conversations", "conversation")
_SYSTEMS = ("system", "system_prompt", "custom_instructions")
_TOOLS = ("tools", "functions", "xml_tools")
_MEDIA = ("image", "images", "video", "videos", "audio", "audios")
# Not `loss`, which as a column is what some model's loss was.
_WEIGHTS = (*WEIGHT_FIELDS, "sample_weight", "loss_mask", "train", "training", "trainable")
# Arguments of SmolLM3's template. Whether to think shows in the answers themselves.
_TEMPLATE = "chat_template_kwargs"
_TEMPLATE_FIELDS = frozenset({"custom_instructions", "xml_tools", "tools", "enable_thinking"})
# Whether an answer is good, in data for KTO; a class, and of no account here, if not true or false.
_LABEL = "label"
_EVERYWHERE = (*_SYSTEMS, *_TOOLS, *_MEDIA, *_WEIGHTS, _LABEL, _TEMPLATE)
_HISTORY = "history"
_INPUTS, _OUTPUTS = ("input", "context"), ("output", "response")
_TOOLS_IN_SYSTEM = re.compile(r"<tools>(.*?)</tools>", re.DOTALL)
OWN_FILES = (
    "Configs for files of your own: messages or sharegpt (lists of turns), alpaca (instruction, "
    "input, output), prompt_response (any two fields: data.rows.prompt=[NAME] "
    "data.rows.response=[NAME])."
)


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns of a file are read. Of each item of `required` a row has at least one.

    `hint` says what to type where there is none.
    """

    required: tuple[tuple[str, ...], ...]
    optional: tuple[str, ...] = ()
    hint: str = OWN_FILES

    @property
    def names(self) -> tuple[str, ...]:
        """Every column that is read."""
        return (*(name for names in self.required for name in names), *self.optional)


def row_columns(rows: ChatRows) -> Columns:
    """Return the columns that decide what a row means."""
    if isinstance(rows, MessageRows):
        return Columns(required=(_LISTS,), optional=_EVERYWHERE)
    if isinstance(rows, ShareGptRows):
        domain = () if rows.domain is None else (("domain",),)
        return Columns(required=(_LISTS, *domain), optional=_EVERYWHERE)
    more = (_HISTORY, *CHAIN_FIELDS, *_EVERYWHERE)
    if isinstance(rows, AlpacaRows):
        return Columns(required=(("instruction",), _OUTPUTS), optional=(*_INPUTS, *more))
    return Columns(required=_pair(rows), optional=more)


def read_row(
    rows: ChatRows, row: Mapping[str, object], where: str
) -> tuple[list[Turn], tuple[Schema, ...]]:
    """Return the turns of a row, and the tools on offer.

    Raises:
        UserError: a field holds the wrong type, cannot be used, or is not known.
        DroppedRow: the row is of no use.
    """
    fields = present(row)
    fields = {**_template(fields, where), **fields}
    _refuse_what_is_not_trained_on(fields, where)
    if isinstance(rows, MessageRows | ShareGptRows):
        domain = rows.domain if isinstance(rows, ShareGptRows) else None
        if domain is not None and text_value(fields.get("domain"), f"{where}: domain") != domain:
            raise DroppedRow(Reason.OTHER_DOMAIN)
        turns = _turns(_one_of(fields, _LISTS, where), "user", where)
    else:
        last = (
            _instruction(fields, where)
            if isinstance(rows, AlpacaRows)
            else _prompt_and_response(fields, _pair(rows), where)
        )
        turns = [*_history(fields, where), *last]
    offered = [tools(fields.get(name), f"{where}: {name}") for name in _TOOLS]
    turns = _with_system(turns, fields, where)
    return turns, _not_in_system(turns, tuple(schema for some in offered for schema in some))


def _pair(rows: QuestionResponseRows | PromptResponseRows) -> tuple[tuple[str, ...], ...]:
    if isinstance(rows, PromptResponseRows):
        return rows.prompt, rows.response
    return ("question",), ("response",)


def _one_of(fields: Mapping[str, object], names: Sequence[str], where: str) -> tuple[str, object]:
    """Return the column that is used, by its name; the first name with None where none says much.

    Raises:
        UserError: several of them say something.
    """
    there = [name for name in names if name in fields]
    if len(there) > 1:
        raise UserError(
            f"{where}: has {' and '.join(there)}; only one of them can be meant",
            hint="Of prompt_response: data.rows.prompt=[NAME] data.rows.response=[NAME]. "
            "Otherwise leave the other one out of the file.",
        )
    name = there[0] if there else names[0]
    return name, fields.get(name)


def _turns(column: tuple[str, object], speaker: str, where: str) -> list[Turn]:
    """Return a list of turns; one of bare texts begins with `speaker`.

    An object of lists is read too: `datasets` stores a Sequence of objects so.
    """
    name, value = column
    if isinstance(value, Mapping) and all(isinstance(each, list) for each in value.values()):
        lengths = {len(each) for each in value.values()}
        if len(lengths) > 1:
            raise UserError(f"{where}: the lists of {name} are not equally long")
        value = [dict(zip(value, each, strict=True)) for each in zip(*value.values(), strict=True)]
    listed = items(value, f"{where}: {name}")
    if not all(isinstance(item, str) for item in listed):
        return [read_turn(item, f"{where}: {name}[{i}]") for i, item in enumerate(listed)]
    roles = ("user", "assistant") if speaker == "user" else ("assistant", "user")
    return [
        Turn(role=roles[i % 2], text=text_value(item, f"{where}: {name}[{i}]"))
        for i, item in enumerate(listed)
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
    given = text_value(_one_of(fields, _INPUTS, where)[1], f"{where}: input")
    instruction = text_value(fields.get("instruction"), f"{where}: instruction")
    question = "\n".join(part for part in (instruction, given) if part)
    answer = text_value(_one_of(fields, _OUTPUTS, where)[1], f"{where}: output")
    turns = [Turn(role="user", text=question), Turn(role="assistant", text=answer)]
    return _with_chains(turns, fields, where)


def _history(fields: Mapping[str, object], where: str) -> list[Turn]:
    """Return earlier turns, which LLaMA-Factory and ms-swift write as pairs."""
    turns = []
    for i, pair in enumerate(items(fields.get(_HISTORY), f"{where}: {_HISTORY}")):
        at = f"{where}: {_HISTORY}[{i}]"
        said = items(pair, at)
        if len(said) != 2:
            raise UserError(f"{at}: {len(said)} items, expected a question and an answer")
        turns += [
            Turn(role=role, text=text_value(each, at))
            for role, each in zip(("user", "assistant"), said, strict=True)
        ]
    return turns


def _with_chains(turns: list[Turn], fields: Mapping[str, object], where: str) -> list[Turn]:
    """Give the last turn the chains that stand in columns of their own."""
    if not (chains := chain_fields(fields, where)):
        return turns
    return [*turns[:-1], replace(turns[-1], chains=(*turns[-1].chains, *chains))]


def _with_system(turns: list[Turn], fields: Mapping[str, object], where: str) -> list[Turn]:
    """Put the system message of a column before the turns."""
    named = {name: text_value(fields.get(name), f"{where}: {name}") for name in _SYSTEMS}
    systems = [system for system in named.values() if system.strip()]
    own = [turn.text for turn in turns[:1] if turn.role == "system"]
    if len({system.strip() for system in (*systems, *own)}) > 1:
        raise DroppedRow(Reason.TWO_SYSTEMS)
    if own or not systems:
        return turns
    return [Turn(role="system", text=systems[0]), *turns]


def _not_in_system(turns: list[Turn], offered: tuple[Schema, ...]) -> tuple[Schema, ...]:
    """Return the tools, none where the system message lists them all, as Hermes' sets do."""
    system = turns[0].text if turns and turns[0].role == "system" else ""
    listed = "".join(_TOOLS_IN_SYSTEM.findall(system)).replace("'", '"')
    return () if all(f'"{name_of(tool)}"' in listed for tool in offered) else offered


def _template(fields: Mapping[str, object], where: str) -> dict[str, object]:
    value, at = fields.get(_TEMPLATE), f"{where}: {_TEMPLATE}"
    if isinstance(value, str):
        value = parse_nested_json(value, at)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise UserError(f"{at} is a {type(value).__name__}, expected an object")
    refuse_unknown(value, _TEMPLATE_FIELDS, at)
    return present(value)


def _refuse_what_is_not_trained_on(fields: Mapping[str, object], where: str) -> None:
    for name in _MEDIA:
        if name in fields:
            raise UserError(
                f"{where}: has {name}; only text can be trained on",
                hint="Leave rows with images, audio and video out.",
            )
    off = [
        name for name in _WEIGHTS if name in fields and not weight(fields[name], f"{where}: {name}")
    ]
    off += [_LABEL] if fields.get(_LABEL) is False else []
    if off:
        raise UserError(
            f"{where}: {off[0]} is {fields[off[0]]}",
            hint="Leave rows out that are not to be trained on.",
        )
