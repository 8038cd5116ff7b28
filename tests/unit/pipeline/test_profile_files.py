"""`profile.files`: files of the user instead of those on the hub, addressed by their contents."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import amnesia_bench as ab
from amnesia_bench.errors import UserError
from amnesia_bench.pipeline.command_lines import command_line
from amnesia_bench.pipeline.experiments import graphs_of
from amnesia_bench.pipeline.graph import stages_of
from amnesia_bench.pipeline.stage import Stage
from amnesia_bench.requests.data import ImportRowsRequest, PrepareRequest
from amnesia_bench.requests.reasoning import GenerateRequest
from amnesia_bench.requests.recall import BuildPromptsRequest, HubEssays

GEMMA = ("experiment=table1", "profile=gemma")


def write(folder: Path, text: str = "") -> dict[str, Path]:
    folder.mkdir()
    files = {}
    for name, suffix in (("gsm8k_chains", ".jsonl"), ("gsm8k", ".jsonl"), ("haystack", ".txt")):
        files[name] = folder / f"my {name}{suffix}"
        files[name].write_text(text or name)
    return files


def stages(files: dict[str, Path]) -> tuple[Stage, ...]:
    own = [f"profile.files.{name}='{path}'" for name, path in files.items()]
    return stages_of(graphs_of([*GEMMA, *own]))


def test_stages_read_the_files_of_the_store_and_need_no_network(tmp_path: Path) -> None:
    mine = stages(write(tmp_path / "a"))
    copies = {s.name: s for s in mine if isinstance(s.request, ImportRowsRequest)}
    assert set(copies) == {"gsm8k_chains.jsonl", "gsm8k.jsonl", "haystack.txt"}
    for stage in mine:
        request = stage.request
        if isinstance(request, PrepareRequest):
            assert request.inputs == (copies["gsm8k_chains.jsonl"].location / "rows.jsonl",)
            assert "--input" in command_line(request, Path("out"))
        elif isinstance(request, GenerateRequest):
            assert request.data == copies["gsm8k.jsonl"].location / "rows.jsonl"
            assert request.limit == 200
        elif isinstance(request, BuildPromptsRequest):
            assert request.haystack == copies["haystack.txt"].location / "rows.txt"
            assert request.seed == 1
    hub = [s.request for s in stages({}) if isinstance(s.request, BuildPromptsRequest)]
    assert [request.haystack for request in hub] == [HubEssays()]


def test_ids_depend_on_the_contents_and_not_on_the_place(tmp_path: Path) -> None:
    ids = [
        {stage.id for stage in stages(write(tmp_path / name, text))}
        for name, text in (("a", "x"), ("b", "x"), ("c", "y"))
    ]
    assert ids[0] == ids[1]
    assert {i for i in ids[0] & ids[2] if i.startswith(("rows", "data", "answers"))} == set()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("profile.files.gsm8k_chains=nowhere.jsonl", "nowhere.jsonl: no such file"),
        ("profile.files.gsm8k_chains=.", "a folder, not a file"),
        ("profile.files.gsm8k_chain=x", "files=gsm8k_chain"),
    ],
)
def test_a_mistake_is_named(override: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        graphs_of([*GEMMA, override])


def test_a_copy_is_made_of_the_expected_contents_only(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text(json.dumps({"text": "hello"}))
    ab.import_rows(ImportRowsRequest(file=file), tmp_path / "out")
    assert (tmp_path / "out" / "rows.jsonl").read_bytes() == file.read_bytes()
    with pytest.raises(UserError, match="was requested"):
        ab.import_rows(ImportRowsRequest(file=file, sha256="0" * 64), tmp_path / "other")
    assert not (tmp_path / "other").exists()
    with pytest.raises(UserError, match="no such file"):
        ab.import_rows(ImportRowsRequest(file=tmp_path / "none"), tmp_path / "other")
