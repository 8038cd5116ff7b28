import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import pytest

from amnesia_bench.errors import UserError
from amnesia_bench.records.codec import from_json, to_json


class Colour(StrEnum):
    RED = "red"


@dataclass(frozen=True, kw_only=True)
class Leaf:
    size: int
    share: float
    colour: Colour


@dataclass(frozen=True, kw_only=True)
class Tree:
    name: str | None
    tall: bool
    leaves: tuple[Leaf, ...]
    notes: Mapping[str, str]
    extra: object


TREE = Tree(
    name=None,
    tall=True,
    leaves=(Leaf(size=1, share=0.1, colour=Colour.RED),),
    notes={"ä": "b"},
    extra=[1, {"x": None}],
)


def test_a_record_survives_the_way_through_text() -> None:
    text = json.dumps(to_json(TREE))
    assert from_json(Tree, json.loads(text), "f") == TREE
    assert json.dumps(to_json(from_json(Tree, json.loads(text), "f"))) == text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"nam": 1}, "some/tree.json: unknown key 'nam'"),
        ({"name": 3}, "some/tree.json: name: expected a string, got 3"),
        ({"tall": 1}, "tall: expected true or false, got 1"),
        ({"leaves": {}}, "leaves: expected a list"),
        ({"leaves": [{"size": 1}]}, "leaves[0]: missing key 'share', 'colour'"),
        (
            {"leaves": [{"size": True, "share": 0.1, "colour": "red"}]},
            "leaves[0].size: expected a whole number, got True",
        ),
        (
            {"leaves": [{"size": 1, "share": 0.1, "colour": "blue"}]},
            "leaves[0].colour: expected 'red', got 'blue'",
        ),
        ({"notes": {"a": 1}}, "notes.a: expected a string, got 1"),
    ],
)
def test_a_wrong_file_is_named_with_the_key(change: dict[str, object], said: str) -> None:
    with pytest.raises(UserError) as caught:
        from_json(Tree, to_json(TREE) | change, "some/tree.json")
    assert str(caught.value).startswith("some/tree.json")
    assert said in str(caught.value)


def test_a_missing_key_is_named() -> None:
    data = to_json(TREE)
    del data["tall"]
    with pytest.raises(UserError, match="missing key 'tall'"):
        from_json(Tree, data, "tree.json")
    with pytest.raises(UserError, match="expected an object"):
        from_json(Tree, [], "tree.json")


def test_what_is_read_is_written_again_to_the_letter() -> None:
    leaf = {"size": 1, "share": 1, "colour": "red"}  # a whole number, where others have a point
    data = to_json(TREE) | {"name": "half \ud83d", "leaves": [leaf]}
    assert json.dumps(to_json(from_json(Tree, data, "f"))) == json.dumps(data)


@dataclass(frozen=True, kw_only=True)
class Planted:
    version: int = 1
    at: tuple[tuple[int, int], ...]


def test_a_default_is_not_guessed_in_a_file() -> None:
    with pytest.raises(UserError, match=r"^p\.json: missing key 'version'$"):
        from_json(Planted, {"at": []}, "p.json")


@pytest.mark.parametrize("item", [[1], [1, 2, 3], [1, 2.0], ["1", 2], 1])
def test_a_pair_is_two_numbers(item: object) -> None:
    with pytest.raises(UserError, match=r"^p\.json: at\[1\]"):
        from_json(Planted, {"version": 1, "at": [[1, 2], item]}, "p.json")
