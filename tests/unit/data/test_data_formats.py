"""The public chat sets, a small row of each as published: what it means, to the letter."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from amnesia_bench.config.data_schema import DataConfig
from amnesia_bench.config.load import load_option
from amnesia_bench.data.conversation import Conversation, Message, read_conversation
from amnesia_bench.data.row_forms import row_columns
from amnesia_bench.data.sources import local_files, read_rows
from tests.support.small_data import write_rows

OPEN_AI_CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city": "Bonn", "days": [1, 2]}'},
}
CALL = {"name": "weather", "arguments": {"city": "Bonn", "days": [1, 2]}}
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object",
                 "properties": {"city": {"type": "string"}}}},
}  # fmt: skip
CHAIN = "<think>\nTwo and two.\n</think>\n\nIt is 4."


def said(role: str, content: str) -> Message:
    return Message(role=role, content=content, answer=content)


def result(content: str, **answers: str) -> Message:
    return Message(role="tool", content=content, answer=content, answers=answers)


def answered(answer: str, reasoning: str | None = None, **more: Any) -> Message:
    """An answer, with a chain whose lines stand between the tags."""
    if reasoning is None:
        return Message(role="assistant", content=answer, answer=answer, **more)
    content = f"<think>\n{reasoning}\n</think>\n\n{answer}"
    return Message(role="assistant", content=content, reasoning=reasoning, answer=answer, **more)


THOUGHT = Message(
    role="assistant", content=CHAIN, reasoning="\nTwo and two.\n", answer="\n\nIt is 4."
)


def talk(*messages: Message, tools: tuple[Any, ...] = ()) -> Conversation:
    return Conversation(messages=messages, tools=tools)


QUESTION = said("user", "What is 2 + 2?")
HERMES_SYSTEM = (
    "You are a function calling AI model. Here are the available tools:\n<tools>\n"
    f"[{json.dumps(WEATHER)}]\n</tools>"
)
HERMES_CALL = (
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Bonn", "days": [1, 2]}}\n</tool_call>'
)

FORMATS: dict[str, tuple[str, dict[str, Any], Conversation]] = {
    "OpenAI fine-tuning": (
        "messages",
        {"messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": "What is 2 + 2?", "name": "ann"},
            {"role": "assistant", "content": "5", "weight": 0, "refusal": None},
            {"role": "user", "content": [{"type": "text", "text": "No, "},
                                         {"type": "text", "text": "properly."}]},
            {"role": "assistant", "content": "4", "weight": 1},
        ]},
        talk(said("system", "Be brief."), QUESTION, answered("5", trained=False),
             said("user", "No, properly."), answered("4")),
    ),
    "OpenAI with tools": (
        "messages",
        {"messages": [
            {"role": "user", "content": "Weather in Bonn?"},
            {"role": "assistant", "content": None, "tool_calls": [OPEN_AI_CALL]},
            {"role": "tool", "tool_call_id": "call_1", "content": "5 C"},
            {"role": "assistant", "content": "It is 5 C.", "tool_calls": None},
        ], "tools": [WEATHER], "parallel_tool_calls": False},
        talk(said("user", "Weather in Bonn?"), answered("", tool_calls=({"id": "call_1", **CALL},)),
             result("5 C", tool_call_id="call_1"), answered("It is 5 C."), tools=(WEATHER,)),
    ),
    "OpenAI's older function_call": (
        "messages",
        {"messages": [
            {"role": "user", "content": "Weather in Bonn?"},
            {"role": "assistant", "content": "", "function_call": OPEN_AI_CALL["function"]},
            {"role": "function", "name": "weather", "content": "5 C"},
            {"role": "assistant", "content": "It is 5 C."},
        ], "functions": [WEATHER["function"]]},
        talk(said("user", "Weather in Bonn?"), answered("", tool_calls=(CALL,)),
             result("5 C", name="weather"), answered("It is 5 C."), tools=(WEATHER["function"],)),
    ),
    "ShareGPT": (
        "sharegpt",
        {"id": "x_0", "conversations": [{"from": "human", "value": "What is 2 + 2?"},
                                        {"from": "gpt", "value": "4"},
                                        {"from": "user", "value": "Sure?"},
                                        {"from": "bing", "value": CHAIN}]},
        talk(QUESTION, answered("4"), said("user", "Sure?"), THOUGHT),
    ),
    "LLaMA-Factory's ShareGPT with tools": (
        "sharegpt",
        {"system": "Be brief.", "tools": json.dumps([WEATHER["function"]]), "conversations": [
            {"from": "human", "value": "Weather in Bonn?"},
            {"from": "function_call",
             "value": "<think>\nLook it up.\n</think>\n\n" + json.dumps(CALL)},
            {"from": "observation", "value": '{"celsius": 5}'},
            {"from": "gpt", "value": "It is 5 C."}]},
        talk(said("system", "Be brief."), said("user", "Weather in Bonn?"),
             Message(role="assistant", content="<think>\nLook it up.\n</think>",
                     reasoning="\nLook it up.\n", answer="", tool_calls=(CALL,)),
             said("tool", '{"celsius": 5}'), answered("It is 5 C."),
             tools=(WEATHER["function"],)),
    ),
    "Alpaca as LLaMA-Factory reads it": (
        "alpaca",
        {"instruction": "Add:", "input": "2 and 2", "output": "4", "system": "Be brief.",
         "history": [["Hi", "Hello"]]},
        talk(said("system", "Be brief."), said("user", "Hi"), answered("Hello"),
             said("user", "Add:\n2 and 2"), answered("4")),
    ),
    "Stanford Alpaca": (
        "alpaca",
        {"instruction": "What is 2 + 2?", "input": "", "output": "4"},
        talk(QUESTION, answered("4")),
    ),
    "UltraChat 200k": (
        "messages",
        {"prompt": "What is 2 + 2?", "prompt_id": "f0e3", "messages": [
            {"content": "What is 2 + 2?", "role": "user"},
            {"content": "4", "role": "assistant"}]},
        talk(QUESTION, answered("4")),
    ),
    "Tulu 3": (
        "tulu3",
        {"id": "oasst1_5921", "source": "ai2-adapt-dev/oasst1_converted", "messages": [
            {"content": "What is 2 + 2?", "role": "user"},
            {"content": "4", "role": "assistant"}]},
        talk(QUESTION, answered("4")),
    ),
    "OpenThoughts 3": (
        "openthoughts3",
        {"difficulty": 8, "source": "stackexchange", "domain": "code", "conversations": [
            {"from": "human", "value": "What is 2 + 2?"}, {"from": "gpt", "value": CHAIN}]},
        talk(QUESTION, THOUGHT),
    ),
    "MiroMind": (
        "miromind",
        {"id": "am_0", "question": "What is 2 + 2?", "response": CHAIN},
        talk(QUESTION, THOUGHT),
    ),
    "DeepSeek-R1 outputs, whose opening tag stood in the prompt": (
        "miromind",
        {"question": "What is 2 + 2?", "response": "Two and two.\n</think>\n\nIt is 4."},
        talk(QUESTION, THOUGHT),
    ),
    "Hermes function calling": (
        "sharegpt",
        {"id": "85", "category": "API", "tools": json.dumps([WEATHER]), "conversations": [
            {"from": "system", "value": HERMES_SYSTEM},
            {"from": "human", "value": "Weather in Bonn?"},
            {"from": "gpt", "value": HERMES_CALL},
            {"from": "tool", "value": "<tool_response>\n{'celsius': 5}\n</tool_response>\n"},
            {"from": "gpt", "value": "It is 5 C."}]},
        talk(said("system", HERMES_SYSTEM), said("user", "Weather in Bonn?"),
             answered(HERMES_CALL), said("tool", "{'celsius': 5}"), answered("It is 5 C.")),
    ),
    "agent traces of Qwen": (
        "messages",
        {"messages": [
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "reasoning_content": "Look.", "content": HERMES_CALL},
            {"role": "user", "content": "<tool_response>\n5\n</tool_response>\n"
                                        "<tool_response>\n6\n</tool_response>"},
            {"role": "assistant", "content": "5 or 6."}]},
        talk(said("user", "Weather?"), answered(HERMES_CALL, "Look."),
             said("tool", "5"), said("tool", "6"), answered("5 or 6.")),
    ),
    "Magpie": (
        "sharegpt",
        {"uuid": "1", "model": "llama", "instruction": "What is 2 + 2?", "response": "4",
         "conversations": [{"from": "human", "value": "What is 2 + 2?"},
                           {"from": "gpt", "value": "4"}],
         "gen_input_configs": {"temperature": 1.0}, "instruct_reward": -3.25},
        talk(QUESTION, answered("4")),
    ),
    "LIMA": (
        "messages",
        {"conversations": ["What is 2 + 2?", "4"], "source": "stackexchange"},
        talk(QUESTION, answered("4")),
    ),
    "Nemotron post-training, chain in a field": (
        "messages",
        {"uuid": "u", "reasoning": "on", "generator": "R1", "metadata": "{}", "messages": [
            {"role": "system", "content": "", "reasoning_content": None},
            {"role": "user", "content": "What is 2 + 2?", "reasoning_content": ""},
            {"role": "assistant", "content": "It is 4.", "reasoning_content": "Two and two.\n",
             "tool_calls": []}]},
        talk(said("system", ""), QUESTION,
             Message(role="assistant", content=CHAIN, reasoning="Two and two.\n",
                     answer="It is 4.")),
    ),
    "Llama-Nemotron": (
        "prompt_response",
        {"input": [{"role": "user", "content": "What is 2 + 2?"}], "output": CHAIN,
         "system_prompt": "detailed thinking on", "reasoning": "on", "license": "cc"},
        talk(said("system", "detailed thinking on"), QUESTION, THOUGHT),
    ),
    "SmolTalk 2": (
        "messages",
        {"messages": [{"content": "What is 2 + 2?", "role": "user"},
                      {"content": "<think>\n\n</think>\n\nIt is 4.", "role": "assistant"}],
         "chat_template_kwargs": {"custom_instructions": "Be brief.", "enable_thinking": False,
                                  "python_tools": [], "xml_tools": [json.dumps(WEATHER)]},
         "source": "OpenHermes"},
        talk(said("system", "Be brief."), QUESTION,
             Message(role="assistant", content="<think>\n\n</think>\n\nIt is 4.",
                     answer="It is 4."), tools=(WEATHER,)),
    ),
    "parts with thinking": (
        "messages",
        {"messages": [
            {"role": "user", "content": "What is 2 + 2?"},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "Two and two.", "signature": "Eq"},
                {"type": "text", "text": "It is 4."}]}]},
        talk(QUESTION, answered("It is 4.", "Two and two.")),
    ),
    "WildChat": (
        "messages",
        {"conversation_hash": "c", "conversation": [
            {"content": "What is 2 + 2?", "role": "user", "language": "English", "toxic": False,
             "hashed_ip": "9", "header": {"accept-language": "en"}, "turn_identifier": 101,
             "redacted": False, "country": "US", "state": "Texas", "timestamp": None},
            {"content": "4", "role": "assistant", "language": "English", "toxic": False,
             "timestamp": "2023-04-09", "turn_identifier": 102, "redacted": False}]},
        talk(QUESTION, answered("4")),
    ),
    "Toucan, all of it as JSON in texts": (
        "messages",
        {"messages": json.dumps([{"role": "user", "content": "What is 2 + 2?"},
                                 {"role": "assistant", "content": "4"}]),
         "tools": json.dumps([WEATHER])},
        talk(QUESTION, answered("4"), tools=(WEATHER,)),
    ),
    "TRL's prompt and completion": (
        "prompt_response",
        {"prompt": [{"role": "user", "content": "What is 2 + 2?"}],
         "completion": [{"role": "assistant", "content": "4"}]},
        talk(QUESTION, answered("4")),
    ),
    "ms-swift's query and response": (
        "prompt_response",
        {"system": "Be brief.", "query": "What is 2 + 2?", "response": "4",
         "history": [["Hi", "Hello"]]},
        talk(said("system", "Be brief."), said("user", "Hi"), answered("Hello"), QUESTION,
             answered("4")),
    ),
    "pairs with the chain in a column": (
        "prompt_response",
        {"question": "What is 2 + 2?", "reasoning": "Two and two.", "answer": "It is 4."},
        talk(QUESTION, answered("It is 4.", "Two and two.")),
    ),
    "a Sequence of datasets, which is an object of lists": (
        "messages",
        {"messages": {"role": ["user", "assistant"], "content": ["What is 2 + 2?", "4"]}},
        talk(QUESTION, answered("4")),
    ),
}  # fmt: skip


def read(path: Path, config: str) -> list[Conversation]:
    """Read a file as `prepare` with that config does."""
    rows = load_option("data", config, (), DataConfig).rows
    assert rows.kind != "text"
    (file,) = local_files([path])
    read = read_rows(file, row_columns(rows), set())
    return [read_conversation(rows, row, f"row {number}") for number, row in read]


@pytest.mark.parametrize("name", FORMATS)
def test_a_row_of_a_public_format_means_what_its_publisher_means(name: str, tmp_path: Path) -> None:
    config, row, wanted = FORMATS[name]
    assert read(write_rows(tmp_path / "rows.jsonl", [row, row]), config) == [wanted] * 2


@pytest.mark.parametrize("name", FORMATS)
def test_a_json_array_gives_the_same(name: str, tmp_path: Path) -> None:
    config, row, wanted = FORMATS[name]
    (tmp_path / "rows.json").write_text(json.dumps([row, row], indent=1))
    assert read(tmp_path / "rows.json", config) == [wanted] * 2


# Arrow has no type for a content that is now a text, now a list.
MIXED = {"OpenAI fine-tuning", "parts with thinking"}


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in MIXED])
def test_parquet_with_its_nulls_gives_the_same(name: str, tmp_path: Path) -> None:
    config, row, wanted = FORMATS[name]
    # The second row gives every column, and every object of a list, fields that the first has not.
    table = pa.Table.from_pylist([{**row, "more": None}, {"more": "x"}])
    parquet.write_table(table.slice(0, 1), tmp_path / "rows.parquet")
    assert read(tmp_path / "rows.parquet", config) == [wanted]


def test_arguments_of_other_calls_are_no_arguments_of_this_one(tmp_path: Path) -> None:
    calls = [{"name": "a", "arguments": {"x": 1}}, {"name": "b", "arguments": {"y": None, "z": 2}}]
    row = {"messages": [{"role": "user", "content": "q"},
                        {"role": "assistant", "content": "", "tool_calls": calls}]}  # fmt: skip
    parquet.write_table(pa.Table.from_pylist([row]), tmp_path / "rows.parquet")
    (made,) = read(tmp_path / "rows.parquet", "messages")
    assert made.messages[1].tool_calls == (
        {"name": "a", "arguments": {"x": 1}},
        {"name": "b", "arguments": {"z": 2}},
    )
    # JSON can say null, and there it is said.
    (made,) = read(write_rows(tmp_path / "rows.jsonl", [row]), "messages")
    assert made.messages[1].tool_calls[1]["arguments"] == {"y": None, "z": 2}
