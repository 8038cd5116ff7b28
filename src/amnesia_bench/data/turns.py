"""Read one turn of a conversation, with the field names of the public chat datasets.

A field of a turn is used, or known to be irrelevant to training, or a number whose name does not
suggest a loss weight. Any other field is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from amnesia_bench.data.tool_calls import Call, tool_calls
from amnesia_bench.data.values import names, present, refuse_unknown, text_value
from amnesia_bench.errors import UserError

END_THINK = "</think>"

# The role for each role name of ShareGPT, OpenAI, LLaMA-Factory, Vicuna, OpenAssistant and Llama 3.
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
    # Assistant turns whose text is a tool call.
    **dict.fromkeys(("function_call", "tool_call"), "call"),
}
_ROLE_FIELDS, _TEXT_FIELDS = ("role", "from"), ("content", "value")
CHAIN_FIELDS = (
    *("reasoning_content", "reasoning", "reasoning_text", "thinking", "thinking_content"),
    *("thought", "thoughts", "think", "cot", "chain_of_thought"),
)
_CALL_FIELDS = ("tool_calls", "function_call")
# These identify the call that a tool turn answers. In other turns they are ignored.
_RESULT_FIELDS = ("tool_call_id", "name")
# Every turn may have weight 1, which is the default. In contrast, a flag that is on requests
# training on its turn, so it is an error in turns of users, tools and the system.
WEIGHT_FIELDS, _FLAG_FIELDS = (
    ("weight", "loss_weight"),
    ("loss_mask", "loss", "train", "training", "trainable"),
)
_MASKED = "masked"
# Metadata that are ignored, such as author, time, place and ratings.
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
    """The content of one turn.

    `chains` are the chains of thought from fields or content parts other than `text`. `calls` are
    the tool calls. `answers` identifies the call that a tool turn answers: it maps `tool_call_id`
    and `name`, as far as the row has them, to their values. `trained` is false if an assistant turn
    is excluded from the loss.
    """

    role: str
    text: str
    chains: tuple[str, ...] = ()
    calls: tuple[Call, ...] = ()
    answers: Mapping[str, str] = field(default_factory=dict)
    trained: bool = True


def read_turn(item: object, at: str) -> Turn:
    """Read one turn of a row; `at` is its location, for error messages.

    Raises:
        UserError: a field is unknown, unusable or of the wrong type.
        DroppedRow: a text is not valid Unicode, or is not JSON although it must be.
    """
    if not isinstance(item, Mapping) or not any(key in item for key in _ROLE_FIELDS):
        actual = f"is of type {type(item).__name__}"
        if isinstance(item, Mapping):
            actual = f"has {names(item)}"
        raise UserError(f"{at}: expected role and content, or from and value; it {actual}")
    fields = present(item)
    refuse_unknown(fields, _KNOWN | _MEANINGLESS, at)
    role = _role(text_value(_only(fields, _ROLE_FIELDS, at), f"{at}: role"), at)
    content, chains = _content(_only(fields, _TEXT_FIELDS, at), at)
    chains = (*chains, *chain_fields(fields, at))
    calls = tuple(
        call for key in _CALL_FIELDS for call in tool_calls(fields.get(key), f"{at}.{key}")
    )
    if role == "call":
        # A chain of thought may precede the call.
        before, end, call = content.rpartition(END_THINK)
        calls, content, role = (*calls, *tool_calls(call, at)), before + end, "assistant"
    if role != "assistant" and (chains or calls):
        raise UserError(
            f"{at}: a {role} turn has {'tool calls' if calls else 'a chain of thought'}"
        )
    trained = _trained(fields, role, at)
    keys = [key for key in _RESULT_FIELDS if role == "tool" and key in fields]
    answers = {key: text_value(str(fields[key]), f"{at}: {key}") for key in keys}
    return Turn(
        role=role, text=content, chains=chains, calls=calls, answers=answers, trained=trained
    )


def chain_fields(fields: Mapping[str, object], at: str) -> tuple[str, ...]:
    """Return the chains of thought in separate fields, without duplicates.

    If such a field contains a switch, such as true or "on", it is a generation setting and ignored.
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
    """Return True for a loss weight of 1, and False for a loss weight of 0.

    Raises:
        UserError: the weight is neither 0 nor 1.
    """
    known = {0: False, 1: True, "0": False, "1": True, "false": False, "true": True}
    key = value.lower() if isinstance(value, str) else value
    if not isinstance(key, str | bool | int | float) or key not in known:
        raise UserError(
            f"{at} is {value!r:.80}: a turn is trained (1) or excluded from the loss (0)",
            hint="Fractional loss weights are not supported: write 0 or 1.",
        )
    return known[key]


def _only(fields: Mapping[str, object], keys: Sequence[str], at: str) -> object:
    """Return the value of the field that has one of two names; None if neither is present."""
    values = [fields[key] for key in keys if key in fields]
    if len(values) == 2 and values[0] != values[1]:
        raise UserError(f"{at}: {keys[0]} and {keys[1]} differ")
    return values[0] if values else None


def _role(name: str, at: str) -> str:
    role = ROLES.get(name.strip().lower())
    if role is None:
        raise UserError(
            f"{at}: unknown role {name!r:.80}",
            hint=f"Supported roles: {', '.join(ROLES)}.",
        )
    return role


def _content(value: object, at: str) -> tuple[str, tuple[str, ...]]:
    """Return the text and the chains of thought of a turn's content.

    If the content is a list of parts, the texts of its parts are joined.
    """
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        return text_value(value, f"{at}: content"), ()
    texts: list[str] = []
    chains: list[str] = []
    for i, part in enumerate(value):
        kind, text = _part(part, f"{at}.content[{i}]")
        (chains if kind in _CHAIN_PARTS else texts).append(text)
    return "".join(texts), tuple(chain for chain in chains if chain.strip())


def _part(part: object, at: str) -> tuple[str, str]:
    if isinstance(part, str):
        return "text", text_value(part, at)
    if not isinstance(part, Mapping):
        raise UserError(f"{at} is of type {type(part).__name__}, expected a text")
    kind = text_value(part.get("type"), f"{at}: type") or "text"
    if kind not in _TEXT_PARTS | _CHAIN_PARTS:
        raise UserError(
            f"{at}: a part of type {kind:.80}; only text can be trained on",
            hint="Remove rows with images, audio and files.",
        )
    fields = present(part)
    refuse_unknown(fields, _PART_FIELDS, at)
    value = fields.get(kind if kind in fields else "text")
    if isinstance(value, list | tuple):  # in Magistral's data, thinking is a list of texts
        return kind, "".join(_part(item, at)[1] for item in value)
    return kind, text_value(value, f"{at}: {kind}")


def _trained(fields: Mapping[str, object], role: str, at: str) -> bool:
    """Return whether an assistant turn counts in the loss; return True for other turns."""
    flags = {key: weight(fields[key], f"{at}: {key}") for key in _FLAG_FIELDS if key in fields}
    weights = {key: weight(fields[key], f"{at}: {key}") for key in WEIGHT_FIELDS if key in fields}
    if _MASKED in fields:
        weights[_MASKED] = not weight(fields[_MASKED], f"{at}: {_MASKED}")
    if role == "assistant":
        settings = {**weights, **flags}
        if len(set(settings.values())) > 1:
            raise UserError(f"{at}: {', '.join(settings)} contradict each other")
        return all(settings.values())
    for key, on in flags.items():
        if on:
            raise UserError(
                f"{at}: {key} requests training on a {role} turn; only assistant turns are trained",
                hint="To train on all turns, remove this flag and set data.chat.loss_on=all.",
            )
    return True
