"""Read LiveCodeBench's problems line by line, since release_v5 contains 4.3 GB of tests.

The data set on the hub is a loading script, which `datasets` 4 and later refuses to run, so this
module reads the raw files. Tests are decoded only when a problem is graded.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import pickle
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any

from amnesia_bench.errors import MissingEnvironmentError, UserError
from amnesia_bench.hub.fetched import HubFiles, find_fetched

REPOSITORY = "livecodebench/code_generation_lite"
REVISION = "0fe84c3912ea0c4d4a78037083943e8f0c4dd505"
FILES = ("test.jsonl", "test2.jsonl", "test3.jsonl", "test4.jsonl", "test5.jsonl")
# Maximum decompressed size of one problem's private tests; the largest in the data set is far
# smaller.
MAX_TEST_BYTES = 4 << 30


@dataclass(frozen=True, kw_only=True)
class Window:
    """A subset of the benchmark: the problems in `files` whose date is `first_date` or later.

    `problems` is the number of problems that the subset must have.
    """

    files: tuple[str, ...]
    problems: int
    first_date: datetime | None = None


# Subsets that papers call "LiveCodeBench v5". 369: release_v5 without release_v2, the subset that
# fits this paper's numbers. 880: release_v5. 279: its problems since August 2024. 167: the problems
# that are new in release_v5.
WINDOWS: Mapping[int, Window] = {
    369: Window(files=FILES[2:], problems=369),
    880: Window(files=FILES, problems=880),
    279: Window(files=FILES, problems=279, first_date=datetime(2024, 8, 1)),  # noqa: DTZ001
    167: Window(files=FILES[4:], problems=167),
}


class ProblemKind(Enum):
    """How a program is tested: by what it prints for an input, or by what its function returns."""

    STDIN = "stdin"
    FUNCTIONAL = "functional"


@dataclass(frozen=True, kw_only=True)
class ProgramTest:
    """One test: an input and the expected output.

    For a functional problem, each line of `input` is one argument as JSON, and `output` is the
    expected return value as JSON.
    """

    input: str
    output: str


@dataclass(frozen=True, kw_only=True)
class CodeProblem:
    """A problem, and the byte offset `offset` of its line in the file `source`.

    `function` is the function that tests call; None if programs read from standard input. `sha256`
    is the hash of the line.
    """

    name: str
    question: str
    starter_code: str
    function: str | None
    sha256: str
    source: Path = field(repr=False)
    offset: int = field(repr=False)

    @property
    def kind(self) -> ProblemKind:
        return ProblemKind.STDIN if self.function is None else ProblemKind.FUNCTIONAL

    def tests(self) -> tuple[ProgramTest, ...]:
        """Return all tests, the public ones first.

        Raises:
            UserError: the file was changed since the problem was read, or the tests cannot be
                decoded.
        """
        with self.source.open("rb") as file:
            file.seek(self.offset)
            line = file.readline()
        if hashlib.sha256(line).hexdigest() != self.sha256:
            raise UserError(f"{self.source}: changed since {self.name} was read from it")
        where = f"{self.source}: {self.name}"
        row = json.loads(line)
        public = _tests(json.loads(row["public_test_cases"]), where)
        private = _tests(_decode(row["private_test_cases"], where), where)
        if not public + private:
            raise UserError(f"{where}: has no tests")
        return public + private


def load_problems(
    window: int, *, path: Path | None = None, revision: str = REVISION
) -> tuple[CodeProblem, ...]:
    """Return the problems of a window in the order of the files.

    Args:
        window: a key of `WINDOWS`.
        path: None to download the files from the hub; or a folder with files of the same names; or
            a single file of the same schema, all of whose problems are returned, whatever the
            window.
        revision: a commit of the hub's repository.

    Raises:
        UserError: the window or a file does not exist, a file cannot be downloaded, the schema
            differs, a line is cut off, or the number of problems is not that of the window.
        MissingEnvironmentError: `path` is None and huggingface_hub is not installed.
    """
    if window not in WINDOWS:
        known = ", ".join(map(str, WINDOWS))
        raise UserError(f"window={window}: no such window", hint=f"Choose one of {known}.")
    if path is not None and path.is_file():
        return tuple(problem for problem, _ in _read(path))
    chosen = WINDOWS[window]
    if path is None:
        fetched = find_fetched(window_files(window)) if revision == REVISION else None
        sources = [
            _download(name, revision) if fetched is None else fetched.folder / name
            for name in chosen.files
        ]
    else:
        sources = [path / name for name in chosen.files]
    problems = tuple(
        problem
        for source in sources
        for problem, date in _read(source)
        if chosen.first_date is None or date >= chosen.first_date
    )
    if len(problems) != chosen.problems:
        raise UserError(
            f"window {window}: {len(problems)} problems in {', '.join(map(str, sources))}, "
            f"not {chosen.problems}",
            hint=f"Use the files of {REPOSITORY} at {REVISION}.",
        )
    return problems


def window_files(window: int) -> HubFiles:
    """Return the files on the hub with the problems of a window."""
    return HubFiles(repository=REPOSITORY, revision=REVISION, names=WINDOWS[window].files)


def problems_identity(problems: tuple[CodeProblem, ...]) -> str:
    """Return a sha256 hash that covers the problems, their tests and their order."""
    return hashlib.sha256("\n".join(problem.sha256 for problem in problems).encode()).hexdigest()


def _download(name: str, revision: str) -> Path:
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise MissingEnvironmentError(
            f"{REPOSITORY}: huggingface_hub is not installed",
            hint='pip install "amnesia-bench[eval]", or pass a folder with the files: --data DIR.',
        ) from error
    try:
        return Path(hf_hub_download(REPOSITORY, name, repo_type="dataset", revision=revision))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{REPOSITORY}: {name} of revision {revision} cannot be downloaded: {error}",
            hint="Download it on a machine with a network, then pass its folder: --data DIR. For "
            "an experiment, use `amnesia fetch` there.",
        ) from error


def _read(source: Path) -> Iterator[tuple[CodeProblem, datetime]]:
    offset = 0
    try:
        with source.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _problem(line, source, offset, f"{source}: line {number}")
                offset += len(line)
    except OSError as error:
        raise UserError(f"{source}: cannot be read: {error.strerror}") from error
    if offset == 0:
        raise UserError(f"{source}: is empty")


def _problem(line: bytes, source: Path, offset: int, where: str) -> tuple[CodeProblem, datetime]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: not valid JSON, perhaps cut off: {error}") from error
    for name in _FIELDS:
        if not isinstance(row, dict) or not isinstance(row.get(name), str):
            raise UserError(
                f"{where}: field {name!r} is missing or not text",
                hint=f"A line needs the fields {', '.join(_FIELDS)}.",
            )
    try:
        function = json.loads(row["metadata"]).get("func_name")
        date = datetime.fromisoformat(row["contest_date"]).replace(tzinfo=None)
    except (ValueError, AttributeError) as error:
        raise UserError(f"{where}: metadata or contest_date is not valid: {error}") from error
    problem = CodeProblem(
        name=row["question_id"],
        question=row["question_content"],
        starter_code=row["starter_code"],
        function=function,
        sha256=hashlib.sha256(line).hexdigest(),
        source=source,
        offset=offset,
    )
    return problem, date


_FIELDS = (
    "question_id",
    "question_content",
    "starter_code",
    "contest_date",
    "metadata",
    "public_test_cases",
    "private_test_cases",
)


def _tests(cases: Any, where: str) -> tuple[ProgramTest, ...]:
    try:
        return tuple(ProgramTest(input=case["input"], output=case["output"]) for case in cases)
    except (TypeError, KeyError) as error:
        raise UserError(f"{where}: a test without input and output: {error!r}") from error


def _decode(text: str, where: str) -> Any:
    """Decode private tests, given as JSON or as a base64-encoded zlib-compressed pickle of JSON."""
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(base64.b64decode(text, validate=True), MAX_TEST_BYTES)
        if not unpacker.eof:
            raise ValueError("cut off, or larger than any test of the dataset")
        return json.loads(_OnlyText(io.BytesIO(data)).load())
    except Exception as error:  # pickle raises nearly any exception on invalid data
        raise UserError(f"{where}: private tests cannot be decoded: {error}") from error


class _OnlyText(pickle.Unpickler):
    """Unpickles plain values only, since a downloaded pickle could otherwise run any function."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"refers to {module}.{name}; tests must not contain code")
