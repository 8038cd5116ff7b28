"""One turn of a conversation, in the spellings of the public chat sets.

Every field of a turn is used, known to mean nothing for training, or refused by its name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from amnesia_bench.data.tool_calls import Call, tool_calls
from amnesia_bench.data.values import names, present, refuse_unknown, text_value
from amnesia_bench.errors import UserError

END_THINK = "</think>"

# Names of ShareGPT, OpenAI, LLaMA-Factory, Vicuna, OpenAssistant and Llama 3.
ROLES: Mapping[str, str] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(
        ("assistant", "gpt", "chatgpt", "bing", "bard", "model", "bot", "ai", "chatbot"),
        "assistant",
    ),
    **dict.fromkeys(
        ("tool", "function", "observation", "function_response", "tool_response", "ipython"),
        "tool",
    ),
    # Turns of an assistant whose text is a call.
    **dict.fromkeys(("function_call", "tool_call"), "call"),
}
_ROLE_FIELDS, _TEXT_FIELDS = ("role", "from"), ("content", "value")
CHAIN_FIELDS = (
    *("reasoning_content", "reasoning", "reasoning_text", "thinking", "thinking_content"),
    *("thought", "thoughts", "think", "cot", "chain_of_thought"),
)
_CALL_FIELDS = ("tool_calls", "function_call")
# Which call the turn of a tool answers; means nothing in turns of others.
_RESULT_FIELDS = ("tool_call_id", "name")
# A weight of 1 is what a turn has anyway; a flag that is on asks for this turn to be trained.
WEIGHT_FIELDS, _FLAG_FIELDS = (
    ("weight", "loss_weight"),
    ("loss_mask", "loss", "train", "training", "trainable"),
)
_MASKED = "masked"
# Who wrote it, when and where, and what others thought of it.
_MEANINGLESS = frozenset(
    (
        *("id", "uuid", "message_id", "parent_id", *_RESULT_FIELDS, "index", "idx"),
        *("turn", "turn_id", "turn_index", "turn_identifier", "hashed_ip", "header", "openai"),
        *("timestamp", "created_at", "create_time", "date", "language", "lang", "country", "state"),
        *("model", "model_name", "source", "finish_reason", "stop_reason", "usage"),
        *("tokens", "num_tokens", "n_tokens", "token_count", "toxic", "redacted"),
        *("score", "rating"),
    )
)
_KNOWN = frozenset(
    (*_ROLE_FIELDS, *_TEXT_FIELDS, *CHAIN_FIELDS, *_CALL_FIELDS, *WEIGHT_FIELDS, *_FLAG_FIELDS)
) | {_MASKED}
_PART_FIELDS = frozenset({"type", "text", "thinking", "reasoning", "cache_control", "signature"})
_TEXT_PARTS = frozenset({"text", "input_text", "output_text"})
_CHAIN_PARTS = frozenset({"thinking", "reasoning"})


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What one turn says.

    `chains` are chains of thought that stand beside `text`. `answers` is which call a tool's turn
    answers, by `tool_call_id` and `name`, as far as the row says.
    """

    role: str
    text: str
    chains: tuple[str, ...] = ()
    calls: tuple[Call, ...] = ()
    answers: Mapping[str, str] = field(default_factory=dict)
    trained: bool = True


def read_turn(item: object, at: str) -> Turn:
    """Return a turn of a row; `at` names its place in messages.

    Raises:
        UserError: a field holds the wrong type, cannot be used, or is not known.
        DroppedRow: a text is not valid Unicode, or should be JSON and is not.
    """
    if not isinstance(item, Mapping) or not any(key in item for key in _ROLE_FIELDS):
        what = names(item) if isinstance(item, Mapping) else f"a {type(item).__name__}"
        raise UserError(f"{at}: expected role and content, or from and value; it has {what}")
    fields = present(item)
    refuse_unknown(fields, _KNOWN | _MEANINGLESS, at)
    role = _role(text_value(_only(fields, _ROLE_FIELDS, at), f"{at}: role"), at)
    content, chains = _content(_only(fields, _TEXT_FIELDS, at), at)
    chains = (*chains, *chain_fields(fields, at))
    calls = tuple(
        call for key in _CALL_FIELDS for call in tool_calls(fields.get(key), f"{at}.{key}")
    )
    if role == "call":
        # With a chain before it, the call is what follows.
        before, end, call = content.rpartition(END_THINK)
        calls, content, role = (*calls, *tool_calls(call, at)), before + end, "assistant"
    if role != "assistant" and (chains or calls):
        raise UserError(
            f"{at}: a {role} turn has {'tool calls' if calls else 'a chain of thought'}"
        )
    trained = _trained(fields, role, at)
    named = _RESULT_FIELDS if role == "tool" else ()
    answers = {key: text_value(str(fields[key]), f"{at}: {key}") for key in named if key in fields}
    return Turn(
        role=role, text=content, chains=chains, calls=calls, answers=answers, trained=trained
    )


def chain_fields(fields: Mapping[str, object], at: str) -> tuple[str, ...]:
    """Return the chains of thought in fields of their own, each once.

    A switch (true, "on") under such a name says how an answer was generated, and is no chain.
    """
    chains = []
    for key in CHAIN_FIELDS:
        value = fields.get(key)
        if isinstance(value, bool) or value in ("on", "off", "true", "false"):
            continue
        chain = text_value(value, f"{at}: {key}")
        if chain.strip():
            chains.append(chain)
    return tuple(dict.fromkeys(chains))


def weight(value: object, at: str) -> bool:
    """Return whether a weight is 1 and not 0.

    Raises:
        UserError: it is neither.
    """
    known = {0: False, 1: True, "0": False, "1": True, "false": False, "true": True}
    key = value.lower() if isinstance(value, str) else value
    if not isinstance(key, str | bool | int | float) or key not in known:
        raise UserError(
            f"{at} is {value!r:.80}: a turn is trained (1) or left out of the loss (0)",
            hint="Losses are not weighted here: write 0 or 1.",
        )
    return known[key]


def _only(fields: Mapping[str, object], keys: Sequence[str], at: str) -> object:
    """Return the field that is there under one of two names; None when there is none."""
    values = [fields[key] for key in keys if key in fields]
    if len(values) == 2 and values[0] != values[1]:
        raise UserError(f"{at}: {keys[0]} and {keys[1]} differ")
    return values[0] if values else None


def _role(name: str, at: str) -> str:
    role = ROLES.get(name.strip().lower())
    if role is None:
        raise UserError(
            f"{at}: role {name!r:.80} is not known",
            hint=f"Known: {', '.join(ROLES)}.",
        )
    return role


def _content(value: object, at: str) -> tuple[str, tuple[str, ...]]:
    """Return the text of a turn and its chains of thought; of parts, the texts joined."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        return text_value(value, f"{at}: content"), ()
    texts: list[str] = []
    chains: list[str] = []
    for i, part in enumerate(value):
        kind, said = _part(part, f"{at}.content[{i}]")
        (chains if kind in _CHAIN_PARTS else texts).append(said)
    return "".join(texts), tuple(chain for chain in chains if chain.strip())


def _part(part: object, at: str) -> tuple[str, str]:
    if isinstance(part, str):
        return "text", text_value(part, at)
    if not isinstance(part, Mapping):
        raise UserError(f"{at} is a {type(part).__name__}, expected a text")
    kind = text_value(part.get("type"), f"{at}: type") or "text"
    if kind not in _TEXT_PARTS | _CHAIN_PARTS:
        raise UserError(
            f"{at}: a part of type {kind:.80}; only text can be trained on",
            hint="Leave rows with images, audio and files out.",
        )
    fields = present(part)
    refuse_unknown(fields, _PART_FIELDS, at)
    said = fields.get(kind if kind in fields else "text")
    if isinstance(said, list | tuple):  # the thinking of Magistral is a list of texts
        return kind, "".join(_part(each, at)[1] for each in said)
    return kind, text_value(said, f"{at}: {kind}")


def _trained(fields: Mapping[str, object], role: str, at: str) -> bool:
    """Return whether an assistant's turn counts in the loss; True for turns that never do."""
    flags = {key: weight(fields[key], f"{at}: {key}") for key in _FLAG_FIELDS if key in fields}
    weights = {key: weight(fields[key], f"{at}: {key}") for key in WEIGHT_FIELDS if key in fields}
    if _MASKED in fields:
        weights[_MASKED] = not weight(fields[_MASKED], f"{at}: {_MASKED}")
    if role == "assistant":
        wanted = {**weights, **flags}
        if len(set(wanted.values())) > 1:
            raise UserError(f"{at}: {', '.join(wanted)} contradict each other")
        return all(wanted.values())
    for key, on in flags.items():
        if on:
            raise UserError(
                f"{at}: {key} asks to train a {role} turn; only assistants' turns are trained",
                hint="data.chat.loss_on=all trains on everything, once the flag is gone.",
            )
    return True
