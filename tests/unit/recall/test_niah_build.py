from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

import amnesia_bench.recall.niah.generate as generate_module
from amnesia_bench.errors import UserError
from amnesia_bench.recall.niah import build_prompts, open_prompt_sets
from amnesia_bench.recall.niah.splicing import NotSpliceableError, SplicedText
from amnesia_bench.recall.niah.tasks import SINGLE_TASKS
from amnesia_bench.requests.recall import BuildPromptsRequest
from amnesia_bench.store.hashing import read_manifest, verify_manifest
from amnesia_bench.tokenizers.tokenizer import load_tokenizer
from tests.support.niah_texts import made_up_essay
from tests.support.niah_tokenizers import train_byte_level, train_metaspace
from tests.support.ruler_questions import write_hotpot

ESSAY = made_up_essay(300)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    train_byte_level(folder / "tokenizer", ESSAY)
    (folder / "essay.txt").write_text(ESSAY)
    return folder


@pytest.fixture
def request_of(inputs: Path) -> Callable[..., BuildPromptsRequest]:
    request: dict[str, Any] = {
        "tokenizer": inputs / "tokenizer",
        "lengths": (2048, 1000),
        "tasks": tuple(SINGLE_TASKS),
        "haystack": inputs / "essay.txt",
        "samples": 6,
    }
    return lambda **changes: BuildPromptsRequest(**{**request, **changes})


def opened(folder: Path, inputs: Path) -> tuple[Any, ...]:
    return open_prompt_sets(folder, load_tokenizer(inputs / "tokenizer"))


def test_another_seed_hides_other_needles(
    request_of: Callable[..., BuildPromptsRequest], inputs: Path, tmp_path: Path
) -> None:
    keys = []
    for seed in (0, 1):
        request = request_of(seed=seed, lengths=(1000,), tasks=("niah_single_3",))
        build_prompts(request, tmp_path / str(seed))
        (prompt_set,) = opened(tmp_path / str(seed), inputs)
        assert json.loads((tmp_path / str(seed) / "prompts.json").read_text())["seed"] == seed
        keys.append({prompt_set.document(i)["outputs"][0] for i in range(len(prompt_set))})
    assert not keys[0] & keys[1]


def test_another_seed_asks_about_other_prompts_where_no_texts_are_drawn(
    request_of: Callable[..., BuildPromptsRequest], inputs: Path, tmp_path: Path
) -> None:
    """Each question of HotpotQA has 10 texts, and these prompts contain no others."""
    hotpot = write_hotpot(tmp_path / "hotpot.json")
    prompts: list[str] = []
    for seed in (0, 1, 2):
        changes = {"tasks": ("ruler_qa_hotpot",), "lengths": (1024,), "hotpot": hotpot}
        build_prompts(request_of(seed=seed, **changes), tmp_path / str(seed))
        (prompt_set,) = opened(tmp_path / str(seed), inputs)
        prompts += [prompt_set.prompt(i) for i in range(len(prompt_set))]
        assert prompts[-1].count("Document ") == 10, "texts of other questions are drawn"
    assert len(set(prompts)) == len(prompts) == 18


def test_cells_give_back_prompts_tokens_and_where_the_needle_is(
    request_of: Callable[..., BuildPromptsRequest], inputs: Path, tmp_path: Path
) -> None:
    build_prompts(request_of(), tmp_path / "out")
    tokenizer = load_tokenizer(inputs / "tokenizer")
    prompt_sets = open_prompt_sets(tmp_path / "out", tokenizer)
    assert [prompt_set.name for prompt_set in prompt_sets] == [
        f"{task}@{length}" for task in SINGLE_TASKS for length in (2048, 1000)
    ]
    for prompt_set in prompt_sets:
        assert len(prompt_set) == 6
        for i in range(6):
            document, tokens = prompt_set.document(i), prompt_set.tokens(i)
            assert prompt_set.prompt(i) == f"{document['input']} {document['gen_prefix']}"
            assert document["outputs"] == [prompt_set.values(i)[0]]
            assert document["length"] <= document["max_length"] == prompt_set.context_tokens
            own = tokenizer(prompt_set.prompt(i), add_special_tokens=False).input_ids
            assert tokens.dtype == np.int32
            assert tokens.tolist() == own
            assert prompt_set.prompt_tokens(i) == len(own)
            start, end = prompt_set.needle_span(i)
            assert f"is: {prompt_set.values(i)[0]}." in tokenizer.decode(tokens[start:end])
            assert 0 <= prompt_set.depth_percent(i) <= 100
            digest = hashlib.sha256(prompt_set.prompt(i).encode()).hexdigest()
            assert prompt_set.prompt_sha256(i) == digest
    assert len({prompt_set.sha256 for prompt_set in prompt_sets}) == len(prompt_sets)


def test_an_artifact_says_what_it_was_made_from_and_is_the_same_when_made_again(
    request_of: Callable[..., BuildPromptsRequest], inputs: Path, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        build_prompts(request_of(), tmp_path / name)
    assert verify_manifest(tmp_path / "one") == []
    manifest = read_manifest(tmp_path / "one")
    assert [parent.role for parent in manifest.parents] == ["tokenizer", "haystack"]
    words = " ".join(ESSAY.split()) + " "  # the text ends in a space, which leaves an empty word
    assert manifest.parents[1].identity == f"sha256:{hashlib.sha256(words.encode()).hexdigest()}"
    assert manifest.provenance.seeds == {"prompts": 0}
    hashes = [
        {entry.path: entry.sha256 for entry in read_manifest(tmp_path / name).files}
        for name in ("one", "two")
    ]
    assert hashes[0] == hashes[1]


def test_a_cell_does_not_depend_on_what_was_built_beside_it(
    request_of: Callable[..., BuildPromptsRequest], inputs: Path, tmp_path: Path
) -> None:
    build_prompts(request_of(), tmp_path / "all")
    alone = request_of(tasks=("niah_single_2",), lengths=(1000,))
    build_prompts(alone, tmp_path / "alone")
    (one,) = opened(tmp_path / "alone", inputs)
    (same,) = (
        prompt_set for prompt_set in opened(tmp_path / "all", inputs) if prompt_set.name == one.name
    )
    assert [same.document(i) for i in range(6)] == [one.document(i) for i in range(6)]
    assert same.sha256 == one.sha256


def test_lines_need_no_haystack(
    request_of: Callable[..., BuildPromptsRequest], inputs: Path, tmp_path: Path
) -> None:
    build_prompts(request_of(tasks=("niah_single_1",), haystack=None), tmp_path / "out")
    assert [prompt_set.task for prompt_set in opened(tmp_path / "out", inputs)] == [
        "niah_single_1"
    ] * 2
    assert not (tmp_path / "out" / "haystack.txt.gz").exists()


def test_where_splicing_is_wrong_whole_prompts_are_tokenised(
    request_of: Callable[..., BuildPromptsRequest],
    inputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    build_prompts(request_of(), tmp_path / "spliced")

    def never(self: SplicedText, pieces: object) -> None:
        raise NotSpliceableError

    monkeypatch.setattr(SplicedText, "compose", never)
    records = build_prompts(request_of(), tmp_path / "whole")
    assert not any(record.spliced for record in records)
    pairs = zip(
        opened(tmp_path / "spliced", inputs), opened(tmp_path / "whole", inputs), strict=True
    )
    for spliced, whole in pairs:
        assert spliced.sha256 == whole.sha256
        assert [spliced.needle_span(i) for i in range(6)] == [
            whole.needle_span(i) for i in range(6)
        ]
        assert whole.tokens(3).shape == (whole.prompt_tokens(3),)


def test_a_haystack_that_is_too_short_says_how_far_it_reaches(
    request_of: Callable[..., BuildPromptsRequest], tmp_path: Path
) -> None:
    request = request_of(tasks=("niah_single_2",), lengths=(1000, 100_000))
    with pytest.raises(UserError, match=r"reach (\d+) tokens, but 100000 are") as caught:
        build_prompts(request, tmp_path / "out")
    reach = int(caught.value.what.split("reach ")[1].split()[0])
    assert 3000 < reach < 6000
    assert "--repeat" in (caught.value.hint or "")
    assert list(tmp_path.iterdir()) == []
    build_prompts(request.model_copy(update={"lengths": (reach - 1,)}), tmp_path / "out")


def test_a_repeated_haystack_is_that_text_written_so_often(
    request_of: Callable[..., BuildPromptsRequest], inputs: Path, tmp_path: Path
) -> None:
    request = request_of(tasks=("niah_single_2",), lengths=(20_000,), repeat=True)
    build_prompts(request, tmp_path / "repeated")
    copies = json.loads((tmp_path / "repeated" / "prompts.json").read_text())["haystack"]["copies"]
    assert copies > 1
    longer = tmp_path / "longer.txt"
    longer.write_text(" ".join([ESSAY] * copies))
    build_prompts(
        request.model_copy(update={"haystack": longer, "repeat": False}), tmp_path / "longer"
    )
    (ours,), (same,) = (opened(tmp_path / name, inputs) for name in ("repeated", "longer"))
    assert ours.sha256 == same.sha256
    assert max(len(ours.tokens(i)) for i in range(6)) > 19_000


def test_a_haystack_that_is_long_enough_is_not_repeated(
    request_of: Callable[..., BuildPromptsRequest], tmp_path: Path
) -> None:
    build_prompts(request_of(repeat=True), tmp_path / "out")
    haystack = json.loads((tmp_path / "out" / "prompts.json").read_text())["haystack"]
    assert haystack["copies"] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lengths": (200,)}, r"niah_single_1@200: .* takes \d+ tokens, 128 of them"),
        ({"lengths": (200,), "tasks": ("niah_single_3",)}, "niah_single_3@200"),
        ({"tasks": ("niah_singel_2",)}, "no task 'niah_singel_2'"),
        ({"haystack": None}, "hide their needles in essays"),
        ({"haystack": Path("nowhere.txt")}, "no such haystack"),
        ({"tokenizer": Path("nowhere")}, "nowhere: no such folder"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused_and_nothing_is_left(
    request_of: Callable[..., BuildPromptsRequest],
    tmp_path: Path,
    changes: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(UserError, match=message):
        build_prompts(request_of(**changes), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": 0}, "samples"),
        ({"lengths": ()}, "lengths"),
        ({"tasks": ()}, "tasks"),
        ({"lengths": (2048, 0)}, r"lengths\.1"),
    ],
)
def test_values_that_no_request_can_have_are_refused_when_it_is_made(
    request_of: Callable[..., BuildPromptsRequest], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        request_of(**changes)


def test_an_unknown_task_names_the_nearest(
    request_of: Callable[..., BuildPromptsRequest], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"Did you mean niah_single_2\?"):
        build_prompts(request_of(tasks=("niah_singel_2",)), tmp_path / "out")


def test_an_existing_output_is_left_alone(
    request_of: Callable[..., BuildPromptsRequest], tmp_path: Path
) -> None:
    (tmp_path / "kept").write_text("mine")
    with pytest.raises(UserError, match="already exists"):
        build_prompts(request_of(), tmp_path)
    assert (tmp_path / "kept").read_text() == "mine"


def test_prompts_for_another_tokenizer_are_refused(
    request_of: Callable[..., BuildPromptsRequest], tmp_path: Path
) -> None:
    build_prompts(request_of(tasks=("niah_single_1",), lengths=(1000,)), tmp_path / "out")
    other = load_tokenizer(train_metaspace(tmp_path / "other", ESSAY))
    with pytest.raises(UserError, match="another tokenizer"):
        open_prompt_sets(tmp_path / "out", other)


def test_damaged_prompts_and_other_folders_are_refused(
    request_of: Callable[..., BuildPromptsRequest], inputs: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="not a finished artifact"):
        opened(tmp_path, inputs)
    build_prompts(request_of(tasks=("niah_single_1",), lengths=(1000,)), tmp_path / "out")
    path = tmp_path / "out" / "cells" / "niah_single_1@1000.json"
    path.write_text(path.read_text().replace("niah_single_1", "niah_single_2"))
    with pytest.raises(UserError, match=r"damaged: cells/niah_single_1@1000\.json"):
        opened(tmp_path / "out", inputs)


def test_an_estimate_that_is_far_off_ends_the_splicing(
    request_of: Callable[..., BuildPromptsRequest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate_module.PromptSetMaker, "_estimate", lambda self, units: math.inf)
    (record,) = build_prompts(
        request_of(tasks=("niah_single_2",), lengths=(2048,)), tmp_path / "out"
    )
    assert not record.spliced
