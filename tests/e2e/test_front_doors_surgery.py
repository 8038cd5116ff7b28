"""restore, diff and verify from Python: the same as the commands."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import amnesia_bench as ab
from amnesia_bench.cli.main import main
from amnesia_bench.records.codec import to_json
from amnesia_bench.requests.checkpoints import (
    DiffRequest,
    RankedLayers,
    RestoreRequest,
    VerifyRequest,
)
from tests.e2e.test_restore_ranked import write_ranking
from tests.support.checkpoints import drifted, random_model, save, tensor_bytes


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    model = random_model(0)
    return save(tmp_path / "pre", model), save(tmp_path / "post", drifted(model, 1))


def printed(capsys: pytest.CaptureFixture[str], *command: object) -> object:
    assert main([*map(str, command), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_restore_writes_what_the_command_writes(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pre, post = pair
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    request = RestoreRequest(
        pre=pre, post=post, variant=ab.load_variant("qk_blend", ["restore.rule.alpha=0.3"])
    )
    record = ab.restore(request, ours)
    by_command = printed(
        capsys, "restore", "--pre", pre, "--post", post, "--out", theirs,
        "--variant", "qk_blend", "restore.rule.alpha=0.3",
    )  # fmt: skip
    assert to_json(replace(record, out=str(theirs))) == by_command
    assert tensor_bytes(ours) == tensor_bytes(theirs)


def test_without_a_folder_restore_only_plans(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pre, post = pair
    ranking = write_ranking(tmp_path / "ranking.json", [4, 1, 3])
    before = sorted(tmp_path.iterdir())
    record = ab.restore(
        RestoreRequest(
            pre=pre,
            post=post,
            variant=ab.load_variant("qk"),
            ranked_layers=RankedLayers(count=2, file=ranking),
        ),
        None,
    )
    assert record.restored_layers == (1, 4)
    layers = f"top2@{ranking}"
    command = ("restore", "--pre", pre, "--post", post, "--layers", layers, "--dry-run")
    assert printed(capsys, *command) == to_json(record)
    assert sorted(tmp_path.iterdir()) == before


def test_diff_and_verify_find_what_the_commands_find(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pre, post = pair
    difference = ab.diff(DiffRequest(a=pre, b=post))
    assert difference.different
    assert printed(capsys, "diff", pre, post) == to_json(difference)
    out = tmp_path / "out"
    ab.restore(RestoreRequest(pre=pre, post=post, variant=ab.load_variant("qk")), out)
    intact = ab.verify(VerifyRequest(folder=out))
    assert printed(capsys, "verify", out) == to_json(intact)
    (out / "config.json").write_text("{}")
    assert ab.verify(VerifyRequest(folder=out)).findings
