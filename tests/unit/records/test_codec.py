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
        ({"nam": 1}, "some/tree.json: unknown key 'nam' in Tree"),
        ({"name": 3}, "some/tree.json: name: expected str, got 3"),
        ({"tall": 1}, "tall: expected bool, got 1"),
        ({"leaves": {}}, "leaves: expected list"),
        ({"leaves": [{"size": 1}]}, "leaves[0]: missing key 'share', 'colour' in Leaf"),
        (
            {"leaves": [{"size": True, "share": 0.1, "colour": "red"}]},
            "leaves[0].size: expected int, got True",
        ),
        ({"leaves": [{"size": 1, "share": 0.1, "colour": "blue"}]}, "leaves[0].colour: 'blue'"),
        ({"notes": {"a": 1}}, "notes.a: expected str, got 1"),
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
    with pytest.raises(UserError, match="missing key 'tall' in Tree"):
        from_json(Tree, data, "tree.json")
    with pytest.raises(UserError, match="expected dict"):
        from_json(Tree, [], "tree.json")
