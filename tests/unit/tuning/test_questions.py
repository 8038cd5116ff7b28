"""Which questions are for the search, and which stay fresh."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from amnesia_bench.errors import UserError
from amnesia_bench.reasoning.task import ProblemSet
from amnesia_bench.tuning.questions import split_problems, split_prompts


@dataclass(frozen=True)
class NamedPrompts:
    """Prompts whose hashes are their texts."""

    name: str
    texts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)

    def prompt_sha256(self, i: int) -> str:
        return self.texts[i]


def prompts(name: str, count: int, prefix: str = "") -> Any:
    return NamedPrompts(name, tuple(f"{prefix or name}{i}" for i in range(count)))


def texts(needles: Any) -> list[str]:
    return [needle.prompt_set.prompt_sha256(needle.doc) for needle in needles]


def problems(*names: str) -> ProblemSet:
    rows = tuple({"question": name} for name in names)
    return ProblemSet(rows=rows, origin="file", sha256="", available=len(rows))


def test_prompts_are_divided_by_seed_and_asked_in_turn() -> None:
    sets = [prompts("a", 10), prompts("b", 9)]
    search, fresh = split_prompts(sets, None, None, seed=1)
    assert len(search) == len(fresh) == 8
    assert not set(texts(search)) & set(texts(fresh))
    assert [needle.prompt_set.name for needle in search[:4]] == ["a", "b", "a", "b"]
    assert split_prompts(sets, None, None, seed=1) == (search, fresh)
    assert split_prompts(sets, None, None, seed=2) != (search, fresh)
    fewer, _ = split_prompts(sets, None, 2, seed=1)
    assert set(texts(fewer)) <= set(texts(search))


def test_fresh_prompts_of_another_folder_leave_all_prompts_to_the_search() -> None:
    search, fresh = split_prompts([prompts("a", 5)], [prompts("a", 7, "c")], None, seed=0)
    assert len(search) == len(fresh) == 5
    assert {text[0] for text in texts(fresh)} == {"c"}


@pytest.mark.parametrize("names", ["a", "ac", "abc"])
def test_fresh_prompts_of_other_tasks_or_lengths_confirm_nothing(names: str) -> None:
    fresh = [prompts(name, 5, f"fresh {name}") for name in names]
    with pytest.raises(UserError, match=f"fresh prompts are {', '.join(names)}, but .* a, b: what"):
        split_prompts([prompts("b", 5), prompts("a", 5)], fresh, None, seed=0)


def test_shared_prompts_are_refused_also_within_one_folder() -> None:
    with pytest.raises(UserError, match="5 of 5 fresh prompts are also prompts of the search"):
        split_prompts([prompts("a", 5)], [prompts("a", 5)], None, seed=0)
    twice: Any = NamedPrompts("a", ("same",) * 4)
    with pytest.raises(UserError, match="2 of 2 fresh prompts"):
        split_prompts([twice], None, None, seed=0)


@pytest.mark.parametrize(("count", "samples"), [(1, None), (4, 3)])
def test_too_few_prompts_are_refused(count: int, samples: int | None) -> None:
    with pytest.raises(UserError, match="half of which stay fresh"):
        split_prompts([prompts("a", count)], None, samples, seed=0)


def test_a_problem_that_occurs_twice_is_used_once() -> None:
    search, fresh = split_problems(problems("a", "b", "a", "c", "b", "d"), 2, seed=0)
    asked = [row["question"] for row in (*search.rows, *fresh.rows)]
    assert sorted(map(str, asked)) == ["a", "b", "c", "d"]
    assert search.sha256 != fresh.sha256
    with pytest.raises(UserError, match="has 2 different problems") as caught:
        split_problems(problems("a", "b", "a"), 2, seed=0)
    assert caught.value.hint is not None
    assert "TASK:1" in caught.value.hint
