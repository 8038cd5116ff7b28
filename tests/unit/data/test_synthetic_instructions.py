"""Both controls: the same parts in another order, and answers that follow from the list."""

import re

import pytest

from tests.support.synthetic import rows_of


def answer_of(items: list[str], task: str) -> list[str]:
    """Do what a task says."""
    if task == "Repeat the list.":
        return items
    if before := re.fullmatch(r"What stands after (\w+) in the list\?", task):
        return [items[items.index(before[1]) + 1]]
    begin = re.fullmatch(r"Say the list from (\w+) on\.", task)
    assert begin is not None
    return items[items.index(begin[1]) :]


@pytest.mark.parametrize(("name", "place"), [("short_instructions", 1), ("long_instructions", 0)])
def test_answers_follow_from_the_list_whose_place_is_the_control(name: str, place: int) -> None:
    for row in rows_of(name, 300):
        asked, answered = (message["content"] for message in row["messages"])
        parts = asked.split("\n")
        assert len(parts) == 3
        items = re.fullmatch(r"The list: (.*)\.", parts[place])
        assert items is not None
        assert answered == ", ".join(answer_of(items[1].split(", "), parts[2])) + "."


def test_the_controls_have_the_same_parts_row_by_row() -> None:
    pairs = zip(rows_of("short_instructions", 200), rows_of("long_instructions", 200), strict=True)
    for short, long in pairs:
        (asked, answered), (asked_long, answered_long) = short["messages"], long["messages"]
        assert sorted(asked["content"].split("\n")) == sorted(asked_long["content"].split("\n"))
        assert asked != asked_long
        assert answered == answered_long
