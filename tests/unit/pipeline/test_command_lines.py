"""The command in a stage's log, typed by hand, asks for exactly what the stage asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import pytest

import amnesia_bench
from amnesia_bench.cli.main import main
from amnesia_bench.config.cache_key import cache_key
from amnesia_bench.pipeline.command_lines import command_line
from amnesia_bench.pipeline.experiments import graphs_of
from amnesia_bench.pipeline.graph import stages_of
from amnesia_bench.pipeline.stage import Stage, whole_of

EVERYTHING = "experiment=table1,table2,table3,table4,table10,figures"


class _Answered(BaseException):
    pass


def asked(
    command: tuple[str, ...], front_door: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, Path]:
    """Return the request and the output that a command gives to a front door."""
    received: list[tuple[Any, Path]] = []

    def record(request: Any, out: Path, **_: object) -> NoReturn:
        received.append((request, out))
        raise _Answered

    monkeypatch.setattr(amnesia_bench, front_door, record, raising=False)
    with pytest.raises(_Answered):
        main(list(command))
    (only,) = received
    return only


def stages(*overrides: str) -> list[Stage]:
    """One stage of each kind, name without seed and length, of some experiments."""
    found = {
        (stage.kind, _name(stage), stage.request.front_door): stage
        for stage in stages_of(graphs_of(overrides))
    }
    return list(found.values())


def _name(stage: Stage) -> tuple[str, bool]:
    return stage.name.partition("-s")[0], whole_of(stage.id) is not None


@pytest.mark.parametrize(
    "overrides",
    [
        (EVERYTHING,),
        (EVERYTHING + ",controls", "profile=tiny"),
        ("experiment=table1", "profile=one_gpu"),
        ("experiment=table1", "profile=smoke_selection"),
        ("experiment=table1", "profile=tiny", "restore=qk_blend", "restore.rule.alpha=0.3"),
        ("experiment=table1", "profile=tiny", "restore.select.heads=[0,1]"),
        ("experiment=table1", "profile=tiny", "profile.max_hours_per_evaluation=1e-9"),
        ("experiment=table1", "profile=tiny", "restore=step_back", "restore.rule.max_steps=3"),
    ],
)
def test_a_stages_command_parses_into_its_request(
    overrides: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stage in stages(*overrides):
        request = stage.request.below(tmp_path)
        out = stage.folder(tmp_path) / request.out_file
        typed, where = asked(command_line(request, out), request.front_door, monkeypatch)
        assert cache_key(typed) == cache_key(request), stage.id
        assert getattr(typed, "division", None) == getattr(request, "division", None), stage.id
        assert where == out


def test_a_file_of_ones_own_is_typed_with_its_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.jsonl").write_text("{}")
    files = [
        f"profile.files.{name}={tmp_path / 'mine.jsonl'}"
        for name in ("gsm8k_chains", "gsm8k", "haystack")
    ]
    seen = set()
    for stage in stages("experiment=table1", "profile=gemma", *files):
        if stage.kind in ("rows", "data", "prompts", "answers"):
            request = stage.request.below(tmp_path)
            command = command_line(request, stage.folder(tmp_path))
            typed, _ = asked(command, request.front_door, monkeypatch)
            assert cache_key(typed) == cache_key(request), stage.id
            seen.add(stage.kind)
    assert seen == {"rows", "data", "prompts", "answers"}


def test_a_repair_of_ones_own_is_typed_as_the_changes_of_a_packaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.yaml").write_text("extends: qk_blend\nrule: {alpha: 0.25}\n")
    (stage,) = (
        stage
        for stage in stages("experiment=table1", "profile=tiny", f"restore={tmp_path}/mine.yaml")
        if stage.kind == "restored"
    )
    assert stage.name.endswith("-mine")
    command = command_line(stage.request, tmp_path / "out")
    typed, _ = asked(command, "restore", monkeypatch)
    assert cache_key(typed) == cache_key(stage.request)
