"""A run says of each stage once that it is done."""

from __future__ import annotations

import io
import json
import re
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from amnesia_bench.pipeline import progress, stages
from amnesia_bench.pipeline.progress import Watcher
from amnesia_bench.records import codec
from amnesia_bench.store.files import make_folder
from amnesia_bench.store.layout import MANIFEST, lease_path, stage_path
from amnesia_bench.store.lease import holding_lease
from amnesia_bench.store.processes import this_process
from tests.support.pipelines import wait_until

GRAPH = tuple(stages.tokenizer(seed) for seed in range(8))


def test_each_stage_is_named_once_however_late_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", said := io.StringIO())
    monkeypatch.setattr(progress, "_POLL_SECONDS", 1e-4)
    with Watcher(tmp_path, GRAPH, (), of=10):
        for stage in GRAPH:
            stage.folder(tmp_path).mkdir(parents=True)
            (stage.folder(tmp_path) / MANIFEST).write_text("")
    lines = said.getvalue().splitlines()
    assert [line.partition("]")[0] for line in lines] == [f"[{n}/10" for n in range(3, 11)]
    assert {line.split()[1] for line in lines} == {stage.id for stage in GRAPH}
    assert "\x1b" not in said.getvalue()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def frames(said: Terminal) -> list[str]:
    """Return what the bar showed, one time after the other."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said.getvalue())
    return [frame for frame in plain.replace("\n", "\r").split("\r") if "/8" in frame]


def test_the_bar_is_one_line_that_is_never_wider_than_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", said := Terminal())
    monkeypatch.setattr(progress, "_POLL_SECONDS", 1e-4)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    with ExitStack() as running, Watcher(tmp_path, GRAPH, (), of=8):
        for stage in GRAPH:
            make_folder(stage_path(tmp_path, stage.id))
            running.enter_context(holding_lease(stage_path(tmp_path, stage.id)))
        wait_until(lambda: any(frame.endswith("…") for frame in frames(said)))
    assert {len(frame) for frame in frames(said)} == {60}
    assert said.getvalue().endswith("\x1b[1A\x1b[2K")  # the bar is gone


def test_a_process_of_another_run_is_named_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", said := io.StringIO())
    elsewhere = replace(this_process(), host="deadhost", pid=4242, since="yesterday")
    ours = this_process()
    for stage, holder in zip(GRAPH, (elsewhere, ours), strict=False):
        lease = lease_path(stage_path(tmp_path, stage.id))
        make_folder(lease)
        (lease / "1").write_text(json.dumps(codec.to_json(holder)))
    with Watcher(tmp_path, GRAPH[:2], (), of=2) as watcher:
        watcher._poll()
        watcher._poll()
    assert said.getvalue().splitlines() == [
        f"waiting for {GRAPH[0].id}: process 4242 on deadhost since yesterday"
    ]


def test_what_turns_out_stale_is_counted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", said := io.StringIO())
    first, second = GRAPH[:2]
    for stage in (first, second):
        stage.folder(tmp_path).mkdir(parents=True)
        (stage.folder(tmp_path) / MANIFEST).write_text("")
    with Watcher(tmp_path, GRAPH[:2], {first.id, second.id}, of=2) as watcher:
        aside = second.folder(tmp_path).rename(tmp_path / "aside")
        watcher._poll()
        aside.rename(second.folder(tmp_path))
    assert said.getvalue().splitlines() == [f"[2/2] {second.id}  0 s"]
