"""Answers survive whatever kills their process, and never mix with those of another run."""

import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest

from amnesia_bench.errors import BusyError, StageFailedError, UserError
from amnesia_bench.inference.generation import (
    GENERATIONS,
    RUN,
    generate_missing,
    read_generations,
    read_run_record,
)
from amnesia_bench.inference.protocol import PromptRequest, UntrustedAnswersError
from amnesia_bench.records.evaluation import Generation, SampleKey, Sampling
from amnesia_bench.store.lease import holding_lease
from amnesia_bench.store.sealed_json import unseal
from tests.support.fake_prompt_sets import PlantedEngine

GREEDY = Sampling(max_new_tokens=8, temperature=0.0, top_p=1.0, top_k=None, stop=())
DRAWN = Sampling(max_new_tokens=8, temperature=0.6, top_p=0.95, top_k=None, stop=("\n",))
IDENTITY = {"checkpoint": "sha256:a", "prompts": "sha256:b"}


def requests(n: int, repeats: int = 1) -> list[PromptRequest]:
    return [
        PromptRequest(
            key=SampleKey(task="task", doc=doc, repeat=repeat),
            tokens=np.array([7, doc], np.int32),
            sampling=GREEDY if repeats == 1 else DRAWN,
            seed=None if repeats == 1 else 1000 * doc + repeat,
        )
        for doc in range(n)
        for repeat in range(repeats)
    ]


class Shuffled(PlantedEngine):
    """Answers in an order of its own, and dies after some."""

    def __init__(self, order: int, dies_after: int | None = None) -> None:
        super().__init__(0.5)
        self.order = order
        self.dies_after = dies_after

    def generate(self, requests: Sequence[PromptRequest]) -> Iterator[Generation]:
        positions = np.random.default_rng(self.order).permutation(len(requests))
        shuffled = [requests[int(i)] for i in positions]
        for count, generation in enumerate(super().generate(shuffled)):
            if count == self.dies_after:
                raise RuntimeError("died")
            yield generation


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_answers_come_in_the_order_of_the_requests_and_are_read_back(tmp_path: Path) -> None:
    asked = requests(6, repeats=2)[::-1]
    found = generate_missing(Shuffled(1), asked, tmp_path / "run", identity=IDENTITY)
    assert [answer.key for answer in found] == [request.key for request in asked]
    assert read_generations(tmp_path / "run") == found[::-1]
    assert [answer.seed for answer in found] == [request.seed for request in asked]


@pytest.mark.parametrize("dies_after", [0, 1, 5, 11])
def test_a_run_that_died_leaves_the_bytes_of_one_that_did_not(
    dies_after: int, tmp_path: Path
) -> None:
    asked = requests(12)
    generate_missing(Shuffled(1), asked, tmp_path / "whole", identity=IDENTITY)
    with pytest.raises(RuntimeError, match="died"):
        generate_missing(Shuffled(2, dies_after), asked, tmp_path / "broken", identity=IDENTITY)
    resumed = Shuffled(3)
    generate_missing(resumed, asked, tmp_path / "broken", identity=IDENTITY)
    assert len(resumed.answered) == 12 - dies_after
    assert files(tmp_path / "broken") == files(tmp_path / "whole")


def test_cut_off_at_any_byte_it_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    asked, folder = requests(3), tmp_path / "run"
    expected = generate_missing(PlantedEngine(0.5), asked, folder, identity=IDENTITY)
    whole = (folder / GENERATIONS).read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    around_ends = {end + shift for end in ends for shift in (-2, -1, 0, 1)} - {len(whole) + 1}
    for kept in sorted({*range(0, len(whole), 23), *around_ends}):
        (folder / GENERATIONS).write_bytes(whole[:kept])
        engine = PlantedEngine(0.5)
        assert generate_missing(engine, asked, folder, identity=IDENTITY) == expected
        assert (folder / GENERATIONS).read_bytes() == whole
        assert len(engine.answered) == 3 - whole[:kept].count(b"\n")


def test_a_tail_of_zeros_as_a_power_cut_leaves_it_is_cut_off(tmp_path: Path) -> None:
    asked, folder = requests(3), tmp_path / "run"
    expected = generate_missing(PlantedEngine(0.5), asked, folder, identity=IDENTITY)
    with (folder / GENERATIONS).open("ab") as file:
        file.write(bytes(300))
    assert generate_missing(PlantedEngine(0.5), asked, folder, identity=IDENTITY) == expected


CHILD = """
import os, signal, sys, time
from pathlib import Path
from amnesia_bench.inference.generation import generate_missing
from tests.support.fake_prompt_sets import PlantedEngine
from tests.unit.inference.test_generation import IDENTITY, requests

class Slow(PlantedEngine):
    def generate(self, requests):
        for generation in super().generate(requests):
            time.sleep(0.005)
            yield generation

generate_missing(Slow(0.5), requests(40), Path(sys.argv[1]), identity=IDENTITY)
"""


def child(folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", CHILD, str(folder)], stderr=subprocess.PIPE)


def test_killed_by_the_kernel_again_and_again_it_ends_as_if_nothing_had_been(
    tmp_path: Path,
) -> None:
    folder, lines = tmp_path / "run", 0
    for _ in range(4):
        process = child(folder)
        deadline = time.monotonic() + 60
        path = folder / GENERATIONS
        while not path.is_file() or path.read_bytes().count(b"\n") < lines + 3:
            assert time.monotonic() < deadline
            assert process.poll() is None, process.stderr
            time.sleep(0.005)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        lines = path.read_bytes().count(b"\n")
    resumed = PlantedEngine(0.5)
    generate_missing(resumed, requests(40), folder, identity=IDENTITY)
    assert len(resumed.answered) == 40 - lines < 40
    generate_missing(PlantedEngine(0.5), requests(40), tmp_path / "whole", identity=IDENTITY)
    assert files(folder) == files(tmp_path / "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"run", "whole"}


def test_of_two_writers_the_second_is_told_who_is_writing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with holding_lease(folder), pytest.raises(BusyError, match=str(os.getpid())):
        generate_missing(PlantedEngine(0.5), requests(3), folder, identity=IDENTITY)
    assert not folder.exists()


def test_a_writer_that_lost_its_lease_writes_no_more(tmp_path: Path) -> None:
    folder = tmp_path / "run"

    class Overtaken(PlantedEngine):
        def generate(self, requests: Sequence[PromptRequest]) -> Iterator[Generation]:
            for position, generation in enumerate(super().generate(requests)):
                if position == 2:
                    (tmp_path / ".run.lease" / "2").write_text("{}")
                yield generation

    with pytest.raises(StageFailedError, match="another process took over"):
        generate_missing(Overtaken(0.5), requests(5), folder, identity=IDENTITY)
    assert len(read_generations(folder)) == 2


class OtherSettings(PlantedEngine):
    @property
    def settings(self) -> Mapping[str, str]:
        return {"engine": "planted", "dtype": "float16"}


def test_answers_of_another_checkpoint_or_engine_are_never_taken(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    generate_missing(PlantedEngine(0.5), requests(3), folder, identity=IDENTITY)
    before = files(folder)
    with pytest.raises(UserError, match="checkpoint was sha256:a and is now sha256:c"):
        generate_missing(
            PlantedEngine(0.5), requests(4), folder, identity={**IDENTITY, "checkpoint": "sha256:c"}
        )
    with pytest.raises(UserError, match="dtype was absent and is now float16"):
        generate_missing(OtherSettings(0.5), requests(4), folder, identity=IDENTITY)
    assert files(folder) == before


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": np.array([7, 9], np.int32)},
        {"sampling": replace(GREEDY, max_new_tokens=9)},
        {"seed": 1},
    ],
)
def test_answers_to_another_prompt_sampling_or_seed_are_never_taken(
    change: dict[str, object], tmp_path: Path
) -> None:
    folder, asked = tmp_path / "run", requests(3)
    generate_missing(PlantedEngine(0.5), asked, folder, identity=IDENTITY)
    asked[1] = replace(asked[1], **change)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="document 1"):
        generate_missing(PlantedEngine(0.5), asked, folder, identity=IDENTITY)


def test_answers_of_a_run_that_failed_its_check_are_not_kept(tmp_path: Path) -> None:
    class Wrong(Shuffled):
        def generate(self, requests: Sequence[PromptRequest]) -> Iterator[Generation]:
            yield from itertools.islice(super().generate(requests), 3)
            raise UntrustedAnswersError("another token")

    folder = tmp_path / "answers"
    with pytest.raises(UntrustedAnswersError):
        generate_missing(Wrong(0), requests(6), folder, identity=IDENTITY)
    assert files(folder) == {}
    found = generate_missing(
        Shuffled(0), requests(6), folder, identity=IDENTITY | {"prefixes": "full"}
    )
    assert len(found) == 6


def test_more_samples_asked_for_later_cost_only_the_new_ones(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    generate_missing(PlantedEngine(0.5), requests(3), folder, identity=IDENTITY)
    engine = PlantedEngine(0.5)
    assert len(generate_missing(engine, requests(8), folder, identity=IDENTITY)) == 8
    assert engine.answered == [3, 4, 5, 6, 7]
    # Fewer than are there: the others stay.
    assert len(generate_missing(engine, requests(2), folder, identity=IDENTITY)) == 2
    assert len(read_generations(folder)) == 8


def test_a_damaged_line_is_named_and_nothing_is_touched(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    generate_missing(PlantedEngine(0.5), requests(3), folder, identity=IDENTITY)
    path = folder / GENERATIONS
    lines = path.read_bytes().splitlines(keepends=True)
    for damaged in (b"{}\n", b"\xff\n", lines[1].replace(b'"doc": 1', b'"doc": "1"'), b"\n"):
        path.write_bytes(lines[0] + damaged + lines[2])
        before = files(folder)
        with pytest.raises(UserError, match="line 2 is damaged"):
            generate_missing(PlantedEngine(0.5), requests(3), folder, identity=IDENTITY)
        assert files(folder) == before


def test_every_flipped_bit_is_refused_or_its_answer_generated_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # thousands of them
    folder, asked = tmp_path / "run", requests(6)
    expected = generate_missing(PlantedEngine(0.5), asked, folder, identity=IDENTITY)
    whole, drawn = files(folder), Random(0)
    refused = again = 0
    for name, times in ((GENERATIONS, 700), (RUN, 200)):
        for _ in range(times):
            content = bytearray(whole[name])
            content[drawn.randrange(len(content))] ^= 1 << drawn.randrange(8)
            for each, unchanged in whole.items():
                (folder / each).write_bytes(unchanged)
            (folder / name).write_bytes(content)
            engine = PlantedEngine(0.5)
            try:
                found = generate_missing(engine, asked, folder, identity=IDENTITY)
            except UserError:
                refused += 1
                continue
            assert found == expected
            again += bool(engine.answered)
    assert refused + again > 850


def test_answers_without_checksums_are_scored_but_not_resumed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    expected = generate_missing(PlantedEngine(0.5), requests(3), folder, identity=IDENTITY)
    lines = [unseal(line.decode()) for line in (folder / GENERATIONS).read_bytes().splitlines()]
    (folder / GENERATIONS).write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (folder / RUN).write_text(json.dumps(dict(read_run_record(folder).depends)))
    assert read_generations(folder) == expected
    with pytest.raises(UserError, match="have no checksums"):
        generate_missing(PlantedEngine(0.5), requests(3), folder, identity=IDENTITY)


def test_answers_without_a_record_of_whose_they_are_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    generate_missing(PlantedEngine(0.5), requests(3), folder, identity=IDENTITY)
    (folder / RUN).unlink()
    with pytest.raises(UserError, match=r"no run\.json"):
        generate_missing(PlantedEngine(0.5), requests(3), folder, identity=IDENTITY)


def test_half_a_surrogate_pair_survives(tmp_path: Path) -> None:
    engine = PlantedEngine(0.0, wrong="half \ud83d and whole \U0001f600\u2028")
    # The engine encodes it as bytes would be: give it tokens of its own.
    engine.generate = lambda asked: (  # type: ignore[method-assign]
        Generation(
            key=request.key, text=engine.wrong, tokens=(1,), prompt_tokens=2,
            finish_reason=next(iter(PlantedEngine(1.0).generate([request]))).finish_reason,
            seed=None,
        )
        for request in asked
    )  # fmt: skip
    (found,) = generate_missing(engine, requests(1), tmp_path / "run", identity=IDENTITY)
    assert read_generations(tmp_path / "run") == (found,)
    assert found.text == engine.wrong


def test_a_full_disk_keeps_what_was_answered_and_goes_on_later(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.raises(StageFailedError, match=r"no space left.*are kept"):
            generate_missing(PlantedEngine(0.5), requests(20), folder, identity=IDENTITY)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    kept = len(read_generations(folder))
    assert 0 < kept < 20
    engine = PlantedEngine(0.5)
    generate_missing(engine, requests(20), folder, identity=IDENTITY)
    assert len(engine.answered) == 20 - kept


def test_an_engine_that_leaves_out_or_makes_up_answers_is_our_bug(tmp_path: Path) -> None:
    class Lazy(PlantedEngine):
        def generate(self, requests: Sequence[PromptRequest]) -> Iterator[Generation]:
            return super().generate(requests[:2])

    with pytest.raises(RuntimeError, match="answered only 2 of 3"):
        generate_missing(Lazy(0.5), requests(3), tmp_path / "lazy", identity=IDENTITY)
    with pytest.raises(ValueError, match="two requests"):
        generate_missing(PlantedEngine(0.5), requests(2) * 2, tmp_path / "twice", identity=IDENTITY)


def test_a_finished_folder_asks_the_engine_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    generate_missing(PlantedEngine(0.5), requests(3), folder, identity=IDENTITY)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    engine = PlantedEngine(0.5)
    generate_missing(engine, requests(3), folder, identity=IDENTITY)
    assert engine.answered == []
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_the_record_of_a_run_says_what_the_answers_depend_on(tmp_path: Path) -> None:
    generate_missing(PlantedEngine(0.5), requests(1), tmp_path / "run", identity=IDENTITY)
    record = read_run_record(tmp_path / "run")
    assert record.depends == {"engine": "planted", **IDENTITY}
    assert record.sealed


def test_a_file_in_the_way_is_a_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match="not a folder"):
        generate_missing(PlantedEngine(0.5), requests(1), tmp_path / "run", identity=IDENTITY)


def test_answers_are_synced_once_a_second_and_when_all_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    sync, now = os.fsync, itertools.count()

    def seen(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").resolve().name == GENERATIONS:
            synced.append(os.fstat(descriptor).st_size)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", seen)
    # Each look at the clock is 0.6 s after the one before: every other answer is due.
    clock = SimpleNamespace(monotonic=lambda: 0.6 * next(now))
    monkeypatch.setattr("amnesia_bench.inference.generation.time", clock)
    generate_missing(PlantedEngine(0.5), requests(6), tmp_path / "out", identity=IDENTITY)
    lines = files(tmp_path / "out")[GENERATIONS].splitlines(keepends=True)
    ends = list(itertools.accumulate(map(len, lines)))
    assert synced == [0, ends[1], ends[3], ends[5], ends[5]]
