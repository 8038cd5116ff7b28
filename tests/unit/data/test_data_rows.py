"""What a row may not say: each field is used or refused by name, and each bad row has a reason."""

import datetime
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from pydantic import TypeAdapter

from amnesia_bench.config.data_schema import ChatRows, Qwen3Chat
from amnesia_bench.data.chat import render
from amnesia_bench.data.conversation import Conversation, read_conversation
from amnesia_bench.data.dropped import DroppedRow, Reason
from amnesia_bench.data.row_forms import row_columns
from amnesia_bench.data.sources import local_files, read_rows
from amnesia_bench.data.turns import ROLES
from amnesia_bench.errors import AmnesiaError, UserError

KINDS: dict[str, ChatRows] = {
    kind: TypeAdapter(ChatRows).validate_json(json.dumps({"kind": kind, **more}))
    for kind, more in {
        "question_response": {},
        "sharegpt": {"domain": None},
        "messages": {},
        "alpaca": {},
        "prompt_response": {"prompt": ["prompt", "question"], "response": ["response", "answer"]},
    }.items()
}
USER = {"role": "user", "content": "q"}
CALL = {"name": "f", "arguments": {}}


def read(row: dict[str, Any], kind: str = "messages") -> Conversation:
    return read_conversation(KINDS[kind], row, "f:3")


def turns(*contents: str | None, **more: Any) -> dict[str, Any]:
    """A row of users and assistants in turn; `more` fields belong to the last."""
    roles = [("user", "assistant")[i % 2] for i in range(len(contents))]
    said = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=True)]
    said[-1].update(more)
    return {"messages": said}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": []}, Reason.EMPTY),
        ({"messages": None}, Reason.EMPTY),
        (turns("q"), Reason.ROLE_ORDER),
        (turns("q", "a", "q"), Reason.ROLE_ORDER),
        ({"messages": turns("q", "a", "q", "a")["messages"][1:]}, Reason.ROLE_ORDER),
        ({"messages": [{"role": "system", "content": "s"}]}, Reason.ROLE_ORDER),
        ({"messages": [*turns("q", "a")["messages"], {"role": "tool", "content": "t"}]},
         Reason.ROLE_ORDER),
        ({"messages": [USER, {"role": "tool", "content": "t"}]}, Reason.ROLE_ORDER),
        ({"messages": [*turns("q", "a")["messages"], {"role": "system", "content": "s"}]},
         Reason.ROLE_ORDER),
        (turns("q", " \n"), Reason.EMPTY),
        (turns("", "a"), Reason.EMPTY),
        (turns("q", "<think>\nr\n</think>\n"), Reason.NO_ANSWER),
        (turns("q", "", reasoning_content="r"), Reason.NO_ANSWER),
        (turns("q", "<think>a<think>b</think>c"), Reason.THINK_BLOCK),
        (turns("q", "<think>a</think>b</think>c"), Reason.THINK_BLOCK),
        (turns("q", "<think>a</think>b<think>c</think>d"), Reason.THINK_BLOCK),
        (turns("q", "</think>a<think>"), Reason.THINK_BLOCK),
        (turns("q", "first <think>r</think>a"), Reason.THINK_BLOCK),
        (turns("q", "<think>never closed"), Reason.OPEN_CHAIN),
        (turns("q", "<thinking>r</thinking>a"), Reason.OTHER_TAGS),
        (turns("q", "<Think>r</Think>a"), Reason.OTHER_TAGS),
        (turns("q", "<|begin_of_thought|>\n\nr<|end_of_thought|>a"), Reason.OTHER_TAGS),
        (turns("q", "[THINK]r[/THINK]a"), Reason.OTHER_TAGS),
        (turns("q", "<think>r</think>a", thinking="another"), Reason.TWO_CHAINS),
        (turns("q", "a", thinking="r", reasoning="another"), Reason.TWO_CHAINS),
        (turns("q", "a") | {"system": "s", "system_prompt": "t"}, Reason.TWO_SYSTEMS),
        (turns("q", "", tool_calls='[{"name": "f"'), Reason.NOT_JSON),
        (turns("q", "", tool_calls=[{"name": "f", "arguments": "{x: 1}"}]), Reason.NOT_JSON),
        (turns("q", "", tool_calls=[{"name": "f", "arguments": '{"x": NaN}'}]), Reason.NOT_JSON),
        (turns("q", "\ud800"), Reason.NOT_UNICODE),
        (turns("q", "a", thinking="\udfff"), Reason.NOT_UNICODE),
        (turns("q", "", tool_calls=[{"name": "f", "arguments": {"x": "\ud800"}}]),
         Reason.NOT_UNICODE),
    ],
)  # fmt: skip
def test_a_row_that_makes_no_conversation_is_dropped_with_its_reason(
    row: dict[str, Any], reason: Reason
) -> None:
    with pytest.raises(DroppedRow) as caught:
        read(row)
    assert caught.value.reason is reason


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("a", Reason.NO_CHAIN),
        ("<think>\n\n</think>\n\na", Reason.EMPTY_CHAIN),
        ("</think>\n\na", Reason.EMPTY_CHAIN),
        ("<reasoning>r</reasoning>a", Reason.OTHER_TAGS),
    ],
)
def test_where_every_answer_must_think_the_kinds_of_not_thinking_are_told_apart(
    answer: str, reason: Reason
) -> None:
    said = [{"from": "human", "value": "q"}, {"from": "gpt", "value": answer}]
    for kind, row in [
        ("question_response", {"question": "q", "response": answer}),
        ("sharegpt", {"conversations": said}),
    ]:
        with pytest.raises(DroppedRow) as caught:
            read(row, kind)
        assert caught.value.reason is reason


def test_rows_of_other_domains_are_dropped_as_such() -> None:
    code = TypeAdapter(ChatRows).validate_json('{"kind": "sharegpt", "domain": "code"}')
    said = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "<think>r</think>a"}]
    for domain in ("math", None):
        with pytest.raises(DroppedRow, match="another domain"):
            read_conversation(code, {"conversations": said, "domain": domain}, "row")
    assert read_conversation(code, {"conversations": said, "domain": "code"}, "row").messages


def test_an_empty_think_block_is_an_answer_without_a_chain_and_as_the_template_writes_it() -> None:
    for block in ("<think>\n\n</think>\n\n", "<think></think>", "</think>\n\n"):
        answer = read(turns("q", f"{block}a")).messages[1]
        assert (answer.reasoning, answer.answer) == (None, "a")
        segments = render(read(turns("q", f"{block}a")), Qwen3Chat(loss_on="assistant"))
        assert [s.text for s in segments if s.trained] == ["a<|im_end|>"]
        assert "".join(s.text for s in segments) == (
            "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
            "a<|im_end|>\n"
        )
        # In an earlier turn nothing is left of it.
        earlier = render(read(turns("q", f"{block}a", "r", "b")), Qwen3Chat(loss_on="assistant"))
        assert [s.text for s in earlier if s.trained] == ["a<|im_end|>", "b<|im_end|>"]


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking", "thought"])
def test_a_chain_may_stand_in_a_field_of_its_own_and_in_the_content_too(key: str) -> None:
    alone = read(turns("q", "a", **{key: "r\n"})).messages[1]
    assert (alone.reasoning, alone.answer) == ("r\n", "a")
    assert alone.content == "<think>\nr\n</think>\n\na"
    both = read(turns("q", "<think>\nr\n</think>\n\na", **{key: "r"})).messages[1]
    assert (both.reasoning, both.answer) == ("\nr\n", "\n\na")
    # A switch under that name is no chain.
    for switch in (True, "on", "off", ""):
        assert read(turns("q", "a", **{key: switch})).messages[1].reasoning is None


@pytest.mark.parametrize(
    ("flag", "trained"),
    [
        ({}, True),
        ({"weight": 1}, True),
        ({"weight": 0}, False),
        ({"weight": 0.0, "train": False}, False),
        ({"loss_mask": 0}, False),
        ({"train": False}, False),
        ({"training": "false"}, False),
        ({"loss": True}, True),
        ({"loss_weight": 1.0}, True),
        ({"masked": True}, False),
        ({"masked": 0}, True),
        ({"weight": None}, True),
    ],
)
def test_a_turn_may_be_left_out_of_the_loss(flag: dict[str, Any], trained: bool) -> None:
    made = read(turns("q", "a", "r", "b", **flag))
    assert [message.trained for message in made.messages] == [True, True, True, trained]
    segments = render(made, Qwen3Chat(loss_on="assistant"))
    wanted = ["a<|im_end|>", "b<|im_end|>"] if trained else ["a<|im_end|>"]
    assert [segment.text for segment in segments if segment.trained] == wanted


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": "hello"}, "f:3: messages is of type str, expected a list"),
        ({"messages": 5}, "f:3: messages is of type int, expected a list"),
        ({"messages": [{"speaker": "ann", "text": "q"}]},
         "f:3: messages[0]: expected role and content, or from and value; it has speaker, text"),
        ({"messages": [USER, "a"]}, "messages[1]: expected role and content, or from and value; "
         "it is of type str"),
        ({"messages": [{"role": "narrator", "content": "x"}]},
         "messages[0]: unknown role 'narrator'"),
        ({"messages": [{"role": "user", "from": "gpt", "content": "x"}]},
         "messages[0]: role and from differ"),
        (turns("q", "a", content=3), "messages[1]: content is of type int, expected a text"),
        (turns("q", "a", weight=0.5), "messages[1]: weight is 0.5: a turn is trained (1) or"),
        (turns("q", "a", loss_mask=[0, 1]), "messages[1]: loss_mask is [0, 1]"),
        (turns("q", "a", weight=0, train=True), "messages[1]: weight, train contradict each other"),
        (turns("q", "a", "r", train=True), "messages[2]: train requests training on a user"),
        (turns("q", "a", train_detail=[{"begin_offset": 0}]),
         "messages[1]: unknown field train_detail"),
        (turns("q", "a", loss_scale=0.3), "messages[1]: unknown field loss_scale"),
        (turns("q", "a", mask=1), "messages[1]: unknown field mask"),
        (turns("q", "a", refusal="I cannot."), "messages[1]: unknown field refusal"),
        (turns("q", "a", channel="analysis"), "messages[1]: unknown field channel"),
        (turns("q", "a", "q", reasoning="r"), "messages[2]: a user turn has a chain of thought"),
        (turns("q", "a", "q", tool_calls=[CALL]), "messages[2]: a user turn has tool calls"),
        (turns("q", "a", tool_calls=[{"type": "retrieval", "id": "1"}]),
         "messages[1].tool_calls[0]: type is 'retrieval'"),
        (turns("q", "a", tool_calls=[{"arguments": {}}]), "tool_calls[0]: has no name"),
        (turns("q", "a", tool_calls=[CALL | {"thought_signature": "x"}]),
         "tool_calls[0]: unknown field thought_signature"),
        (turns("q", "a", tool_calls=[CALL | {"arguments": {"when": datetime.date(2026, 1, 1)}}]),
         "tool_calls[0].arguments: not a JSON value"),
        ({"messages": [USER | {"content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
         "messages[0].content[0]: a part of type image_url; only text can be trained on"),
        (turns("q", "a") | {"images": ["x.png"]}, "f:3: has images; only text"),
        (turns("q", "a") | {"weight": 0.2}, "f:3: weight is 0.2"),
        (turns("q", "a") | {"loss_mask": [0, 1]}, "f:3: loss_mask is [0, 1]"),
        (turns("q", "a") | {"train": False}, "f:3: train is False"),
        (turns("q", "a") | {"label": False}, "f:3: label is False"),
        (turns("q", "a") | {"tools": [5]}, "f:3: tools[0] is of type int, expected an object"),
        (turns("q", "a") | {"tools": [{"type": "function"}]}, "f:3: tools[0]: has no name"),
        (turns("q", "a") | {"system": 3}, "f:3: system is of type int, expected a text"),
        (turns("q", "a") | {"conversations": ["q", "b"]}, "f:3: has messages and conversations"),
        (turns("q", "a") | {"chat_template_kwargs": {"python_tools": ["def f(): ..."]}},
         "f:3: chat_template_kwargs: unknown field python_tools"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_an_error_that_names_row_and_field(
    row: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError) as caught:
        read(row)
    assert said in caught.value.what


@pytest.mark.parametrize(
    ("kind", "row", "said"),
    [
        ("question_response", {"question": ["q"], "response": 5}, "f:3: response is of type int"),
        ("prompt_response", {"prompt": "p", "question": "q", "answer": "a"},
         "f:3: has prompt and question; only one of them can be used"),
        ("alpaca", {"instruction": "q", "output": ["good", "bad"]}, "f:3: output is of type list"),
        ("alpaca", {"instruction": "q", "output": "a", "history": [["q"]]},
         "f:3: history[0]: 1 items, expected a question and an answer"),
    ],
)  # fmt: skip
def test_so_do_other_forms(kind: str, row: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        read(row, kind)
    assert said in caught.value.what


def test_a_measure_of_a_turn_changes_nothing() -> None:
    assert read(turns("q", "a", n_words=1, perplexity=2.5, id="x")) == read(turns("q", "a"))


# Rows of which any part may be anything.
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.text(st.characters(), max_size=12)
    | st.sampled_from(["<think>r</think>a", "</think>a", "<tool_response>\n5\n</tool_response>",
                       "[", "{}", '[{"role": "user", "content": "q"}]', "\ud800", "on", "text"])
)  # fmt: skip
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "text", "function", "name", "arguments"])
            | st.text(max_size=3),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)
FIELDS = st.sampled_from(
    ["role", "from", "content", "value", "reasoning_content", "tool_calls", "function_call",
     "weight", "train", "masked", "id", "extra"]
)  # fmt: skip


def joined(*parts: dict[str, Any]) -> dict[str, Any]:
    return {key: value for part in parts for key, value in part.items()}


def turn_of(role: str) -> st.SearchStrategy[Any]:
    """A turn that is right, but for a field or two."""
    right = st.fixed_dictionaries({"role": st.just(role), "content": st.just("a") | SCALARS})
    return st.builds(joined, right, st.dictionaries(FIELDS, ANYTHING, max_size=1)) | right


TURNS = st.lists(st.sampled_from(sorted(ROLES)).flatmap(turn_of) | ANYTHING, max_size=4) | (
    st.tuples(turn_of("user"), turn_of("assistant"), turn_of("tool"), turn_of("gpt")).map(list)
)
COLUMNS = sorted({name for rows in KINDS.values() for name in row_columns(rows).names})
ROW = st.builds(
    joined,
    st.fixed_dictionaries({name: st.just("a") | SCALARS for name in ("question", "response")})
    | st.fixed_dictionaries({name: st.just("a") | SCALARS for name in ("instruction", "output")})
    | st.fixed_dictionaries({"messages": TURNS}),
    st.dictionaries(st.sampled_from(COLUMNS), ANYTHING | TURNS, max_size=2),
)


@pytest.mark.parametrize("kind", KINDS)
@given(row=ROW)
@settings(max_examples=300, deadline=None)
def test_no_row_that_json_can_hold_is_a_traceback(kind: str, row: dict[str, Any]) -> None:
    try:
        made = read_conversation(KINDS[kind], row, "f:3")
    except (DroppedRow, UserError):
        return
    assert made.messages[-1].role == "assistant"
    assert all(isinstance(message.content, str) for message in made.messages)


TYPES = st.recursive(
    st.sampled_from([pa.string(), pa.large_string(), pa.binary(), pa.int64(), pa.float16(),
                     pa.bool_(), pa.timestamp("us"), pa.date32(), pa.decimal128(9, 2)]),
    lambda inner: st.builds(pa.list_, inner)
    | st.builds(lambda value: pa.map_(pa.string(), value), inner)
    | st.builds(
        lambda names, value: pa.struct([(name, value) for name in names]),
        st.lists(FIELDS, min_size=1, max_size=3, unique=True),
        inner,
    ),
    max_leaves=3,
)  # fmt: skip
SAMPLES: dict[Any, Any] = {
    pa.string(): "a", pa.large_string(): "b", pa.binary(): b"\xff", pa.int64(): 1,
    pa.float16(): 1.5, pa.bool_(): True, pa.date32(): 2**30, pa.decimal128(9, 2): Decimal("1.25"),
    pa.timestamp("us"): 2**62,
}  # fmt: skip


def sample(kind: Any) -> Any:
    if pa.types.is_struct(kind):
        return {field.name: sample(field.type) for field in kind}
    if pa.types.is_map(kind):
        return [("k", sample(kind.item_type))]
    return [sample(kind.value_type), None] if pa.types.is_list(kind) else SAMPLES[kind]


@given(
    columns=st.dictionaries(st.sampled_from(COLUMNS), TYPES, max_size=4),
    kind=st.sampled_from(sorted(KINDS)),
)
@settings(max_examples=200, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
def test_no_table_that_parquet_can_hold_is_a_traceback(
    columns: dict[str, Any], kind: str, tmp_path: Path
) -> None:
    columns |= {names[0]: pa.string() for names in row_columns(KINDS[kind]).required
                if not set(names) & set(columns)}  # fmt: skip
    table = pa.table({
        name: pa.array([sample(kind), None], kind) for name, kind in columns.items()
    })  # fmt: skip
    parquet.write_table(table, tmp_path / "rows.parquet")
    try:
        used = converted(tmp_path / "rows.parquet", KINDS[kind])
    except AmnesiaError:
        return
    assert used <= 2


def converted(path: Path, rows: ChatRows) -> int:
    """Return how many rows of a file are conversations."""
    (file,) = local_files([path])
    used = 0
    for number, row in read_rows(file, row_columns(rows), set()):
        try:
            read_conversation(rows, row, f"f:{number}")
            used += 1
        except DroppedRow:
            continue
    return used
