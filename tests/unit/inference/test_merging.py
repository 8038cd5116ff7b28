"""The merged answers of parts are those of one run, or the merge names what is wrong."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from amnesia_bench.errors import UserError
from amnesia_bench.inference.generation import GENERATIONS, generate_missing
from amnesia_bench.inference.merging import PartsEngine
from amnesia_bench.inference.protocol import PromptRequest
from amnesia_bench.records.evaluation import SampleKey, Sampling
from amnesia_bench.requests.answering import AnswerPart
from tests.support.fake_engine import FakeEngine

SAMPLED = Sampling(max_new_tokens=8, temperature=0.6, top_p=0.95, top_k=None, stop=())
RUN = {"checkpoint": "sha256:a", "prompts": "sha256:b"}
ENGINE = FakeEngine(lambda request: f"{request.seed}")


class Another(FakeEngine):
    settings = {"engine": "another", "device": "cuda"}  # noqa: RUF012


def requests(seed: int = 0) -> list[PromptRequest]:
    return [
        PromptRequest(
            key=SampleKey(task="task", doc=doc, repeat=repeat),
            tokens=np.array([7, doc], np.int32),
            sampling=SAMPLED,
            seed=seed + 10 * doc + repeat,
        )
        for doc in range(7)
        for repeat in range(2)
    ]


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    folders = []
    for index in (1, 2, 3):
        part = AnswerPart(index=index, count=3).documents(7)
        own = [request for request in requests() if request.key.doc in part]
        folders.append(tmp_path / f"part{index}")
        generate_missing(ENGINE, own, folders[-1], identity=RUN)
    return folders


def merge(parts: list[Path], out: Path, seed: int = 0) -> None:
    generate_missing(PartsEngine(parts, RUN), requests(seed), out, identity=RUN)


def test_a_merge_writes_the_files_of_a_run_without_parts(parts: list[Path], tmp_path: Path) -> None:
    generate_missing(ENGINE, requests(), tmp_path / "whole", identity=RUN)
    merge(parts[::-1], tmp_path / "merged")
    merge(parts, tmp_path / "merged")  # again: nothing is missing
    whole, merged = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("whole", "merged")
    )
    assert whole == merged


def missing(parts: list[Path]) -> None:
    parts.pop()


def absent(parts: list[Path]) -> None:
    parts.append(parts[0].with_name("part4"))


def unfinished(parts: list[Path]) -> None:
    path = parts[1] / GENERATIONS
    path.write_bytes(path.read_bytes()[:-9])


def foreign(parts: list[Path]) -> None:
    other = parts[0].with_name("other")
    generate_missing(ENGINE, requests()[:4], other, identity=RUN | {"checkpoint": "sha256:c"})
    parts[0] = other


def unlike(parts: list[Path]) -> None:
    other = parts[0].with_name("other")
    generate_missing(Another(lambda _: "?"), requests()[:4], other, identity=RUN)
    parts[0] = other


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (missing, "the parts lack 6 of 14 answers, for example to document 4 of task"),
        (absent, "part4: is not a part of these answers"),
        (unfinished, "the parts lack 1 of 14 answers, for example to document 3 of task"),
        (foreign, "a part of another run: its checkpoint is sha256:c, not sha256:a"),
        (unlike, "different settings: device is cuda in .*other, and absent in .*part2"),
    ],
)
def test_a_merge_refuses_what_is_not_a_part(
    parts: list[Path], tmp_path: Path, spoil: Callable[[list[Path]], None], said: str
) -> None:
    spoil(parts)
    with pytest.raises(UserError, match=said):
        merge(parts, tmp_path / "merged")


def test_a_merge_refuses_answers_to_other_prompts(parts: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="part1: its answer to task, document 0, repeat 0 belongs"):
        merge(parts, tmp_path / "merged", seed=1)
