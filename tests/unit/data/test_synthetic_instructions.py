"""Both controls: the same parts in another order, and answers that follow from the story."""

import re

import pytest

from tests.support.synthetic import rows_of


def answer_of(events: list[str], instruction: str) -> list[str]:
    """Do what an instruction says."""
    if instruction == "What is mentioned in the provided text?":
        return events
    asked = re.fullmatch(r"What is mentioned (on \w+)( and afterwards)?\?", instruction)
    assert asked is not None
    (first,) = (i for i, event in enumerate(events) if event.startswith(f"{asked[1]} "))
    return events[first:] if asked[2] else events[first : first + 1]


@pytest.mark.parametrize(("name", "place"), [("short_instructions", 1), ("long_instructions", 0)])
def test_answers_follow_from_the_story_whose_place_is_the_control(name: str, place: int) -> None:
    instructions = set()
    for row in rows_of(name, 300):
        asked, answered = (message["content"] for message in row["messages"])
        parts = asked.split("\n")
        assert len(parts) == 3
        story = re.fullmatch(r"(\w+) (.*)\.", parts[place])
        assert story is not None
        events = answer_of(story[2].split(", "), parts[2])
        assert answered == f"{story[1]} {', '.join(events)}."
        # No event is worked out: the answer has no equation and no chain.
        assert "=" not in answered
        instructions.add(parts[2])
    assert len(instructions) == 1 + 2 * 4  # all events; one of four days; a day and afterwards


def test_the_controls_have_the_same_parts_row_by_row() -> None:
    pairs = zip(rows_of("short_instructions", 200), rows_of("long_instructions", 200), strict=True)
    for short, long in pairs:
        (asked, answered), (asked_long, answered_long) = short["messages"], long["messages"]
        assert sorted(asked["content"].split("\n")) == sorted(asked_long["content"].split("\n"))
        assert asked != asked_long
        assert answered == answered_long
