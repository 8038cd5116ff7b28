"""kill -9 anywhere in a preparation: nothing looks finished, and what comes after is the same."""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from amnesia_bench.data import open_store
from amnesia_bench.data import prepare as preparing
from amnesia_bench.errors import BusyError, UserError
from amnesia_bench.requests.data import PrepareRequest
from amnesia_bench.tokenizers.tokenizer import load_tokenizer
from tests.support.small_data import cot_row, data_config, save_tokenizer, write_rows

UNSIGNED_SECONDS = 5.5


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Sequence[Path]:
    """A tokenizer, then four files of rows."""
    base = tmp_path_factory.mktemp("inputs")
    files = [
        write_rows(base / f"{k}.jsonl", [cot_row(i) for i in range(k * 25, k * 25 + 20)])
        for k in range(4)
    ]
    return [save_tokenizer(base / "tokenizer"), *files]


@pytest.fixture
def prepare(inputs: Sequence[Path], monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    loaded = load_tokenizer(inputs[0])
    monkeypatch.setattr(preparing, "load_tokenizer", lambda folder: loaded)
    # Small batches, so that there is something between the first and the last of a file.
    monkeypatch.setattr(preparing, "_BATCH_CHARACTERS", 500)
    config = data_config(over_length="truncate", sequence_tokens=192)
    request = PrepareRequest(config=config, tokenizer=inputs[0], inputs=tuple(inputs[1:]))

    def run(out: Path) -> None:
        try:
            preparing.prepare(request, out)
        except BusyError:
            # Killed between making a claim and signing it: for some seconds nobody can tell.
            time.sleep(UNSIGNED_SECONDS)
            preparing.prepare(request, out)

    return run


def in_a_child(run: Callable[[], None], kill_after: int | None) -> int | None:
    """Run in a forked process, killed at its n-th call of a function of ours; None when killed.

    Returns how many calls there were.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        calls = 0

        def count(frame: object, event: str, argument: object) -> None:
            nonlocal calls
            if event in ("call", "c_call"):
                calls += 1
                if calls == kill_after:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.setprofile(count)
            run()
            sys.setprofile(None)
            os.write(write, str(calls).encode())
        except BaseException:
            sys.setprofile(None)
            os.write(write, traceback.format_exc().encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        written = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return None
    assert written.isdecimal(), written
    return int(written)


def contents(out: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in out.iterdir() if p.name != "manifest.json"}


def kill_and_go_on(prepare: Callable[[Path], None], base: Path, kills: int, seed: int) -> int:
    """Check that every preparation ends in the same bytes; return how often one was killed."""
    whole = base / "whole"
    calls = in_a_child(lambda: prepare(whole), None)
    assert calls is not None
    rng = np.random.default_rng(seed)
    killed = 0
    for number in range(kills):
        out = base / f"killed{number}"
        # Killed again and again, always anew at random, until an attempt gets through.
        while True:
            after = int(rng.integers(1, int(calls * 1.3)))
            if in_a_child(lambda out=out: prepare(out), after) is not None:  # type: ignore[misc]
                break
            killed += 1
            if out.exists():  # it was published: only clearing up was left
                break
        assert contents(out) == contents(whole)
        assert open_store(out).sha256 == open_store(whole).sha256
    return killed


def test_killed_at_random_it_goes_on_to_the_same_bytes(
    prepare: Callable[[Path], None], tmp_path: Path
) -> None:
    assert kill_and_go_on(prepare, tmp_path, kills=6, seed=0) >= 3


@pytest.mark.slow
def test_killed_at_a_hundred_moments_it_goes_on_to_the_same_bytes(
    prepare: Callable[[Path], None], tmp_path: Path
) -> None:
    assert kill_and_go_on(prepare, tmp_path, kills=100, seed=1) >= 50


def test_a_part_that_was_cut_off_is_made_again(
    prepare: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise KeyboardInterrupt

    prepare(tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr(preparing, "_pack", fail)
        with pytest.raises(KeyboardInterrupt):
            prepare(tmp_path / "out")
    parts = tmp_path / ".out.parts"
    # As a file system may leave it that lost power: the summary there, the tokens not whole.
    first, second, *_ = sorted(parts.glob("*.tokens"))
    first.write_bytes(first.read_bytes()[:-2])
    second.with_suffix(".json").write_text('{"rows": ')
    prepare(tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not parts.exists()


def test_what_a_kill_after_publishing_left_is_cleared_by_the_next_attempt(
    prepare: Callable[[Path], None], tmp_path: Path
) -> None:
    prepare(tmp_path / "out")
    (tmp_path / ".out.parts").mkdir()
    with pytest.raises(UserError, match="already exists"):
        prepare(tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


def test_what_is_not_ours_in_a_hidden_folder_stays(
    prepare: Callable[[Path], None], tmp_path: Path
) -> None:
    own = tmp_path / ".out.parts/notes.txt"
    own.parent.mkdir()
    own.write_text("mine")
    prepare(tmp_path / "out")
    with pytest.raises(UserError, match="already exists"):
        prepare(tmp_path / "out")
    assert [path.name for path in own.parent.iterdir()] == ["notes.txt"]
    assert own.read_text() == "mine"


def test_a_part_that_was_damaged_between_two_attempts_is_made_again(
    inputs: Sequence[Path], prepare: Callable[[Path], None], tmp_path: Path
) -> None:
    prepare(tmp_path / "clean")
    wanted = open_store(tmp_path / "clean").sha256
    spoil, good = inputs[4], inputs[4].read_bytes()
    flips = np.random.default_rng(0)
    for i in range(12):
        out = tmp_path / f"out{i}"
        spoil.write_bytes(good + b"torn {")
        with pytest.raises(UserError):
            prepare(out)
        spoil.write_bytes(good)
        kept = sorted((tmp_path / f".out{i}.parts").iterdir())
        assert len(kept) == 3 * 4  # of each finished file: tokens, mask, lengths, and its record
        damaged = kept[i]
        data = bytearray(damaged.read_bytes())
        data[flips.integers(len(data))] ^= 1 << int(flips.integers(8))
        damaged.write_bytes(data)
        prepare(out)
        assert open_store(out).sha256 == wanted, damaged.suffix
        assert not (tmp_path / f".out{i}.parts").exists()


def test_what_a_user_put_beside_the_parts_stays(
    inputs: Sequence[Path], prepare: Callable[[Path], None], tmp_path: Path
) -> None:
    folder = tmp_path / ".out.parts"
    (folder / "below").mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    (folder / "below" / "more.json").write_text("{}")
    prepare(tmp_path / "out")
    assert sorted(path.name for path in folder.rglob("*")) == ["below", "more.json", "notes.txt"]
