"""Build all prompt sets for one tokenizer, and write them as one artifact."""

from __future__ import annotations

import gzip
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from amnesia_bench.errors import UserError
from amnesia_bench.recall.niah.catalogue import find_task
from amnesia_bench.recall.niah.documents import Essays, HaystackDocuments, Lines
from amnesia_bench.recall.niah.drafts import Drawer, TokenMeter, TooLongError, draw_all
from amnesia_bench.recall.niah.frequencies import (
    CODED_WORDS_TASK,
    COMMON_WORDS_TASK,
    CodedWordsDrawer,
    CommonWordsDrawer,
)
from amnesia_bench.recall.niah.generate import PromptSetMaker, TooShortError
from amnesia_bench.recall.niah.haystack import Haystack, read_haystack
from amnesia_bench.recall.niah.needles import NeedlesDrawer, NeedlesTask
from amnesia_bench.recall.niah.prompt_sets import (
    HAYSTACK,
    KIND,
    PROMPT_SETS,
    PROMPTS,
    TOKENIZER,
)
from amnesia_bench.recall.niah.questions import (
    HOTPOT_TASK,
    OPTIONS,
    SOURCES,
    SQUAD_TASK,
    QuestionFile,
    QuestionsDrawer,
    read_questions,
)
from amnesia_bench.recall.niah.ruler_sets import archive_of, make_prompt_set
from amnesia_bench.recall.niah.splicing import SplicedText, count_tokens
from amnesia_bench.recall.niah.streams import RandomStreams
from amnesia_bench.recall.niah.tasks import NiahTask, RecallTask
from amnesia_bench.recall.niah.tracking import (
    TRACKING_TASK,
    EqualNamesError,
    ExampleError,
    TrackingDrawer,
    noise_text,
)
from amnesia_bench.recall.niah.words import WORDS_SHA256, all_words, needle_keys
from amnesia_bench.records.artifacts import Parent
from amnesia_bench.records.codec import to_json
from amnesia_bench.records.niah import HaystackSource, NiahPrompts, PromptSetRecord
from amnesia_bench.records.ruler import RulerPromptSet
from amnesia_bench.requests.recall import BuildPromptsRequest
from amnesia_bench.store.files import write_json
from amnesia_bench.store.provenance import collect_provenance
from amnesia_bench.store.publish import publishing
from amnesia_bench.tokenizers.known import KnownTokenizer, open_known_tokenizer
from amnesia_bench.tokenizers.sentences import sentence_splitter

_GENERATOR = "lm-eval 0.4.13"
_FIRST_GUESS_UNITS = 1000
_NOISE_SAMPLE_LINES = 100

AnyRecord = PromptSetRecord | RulerPromptSet


def build_prompts(request: BuildPromptsRequest, out: Path) -> tuple[AnyRecord, ...]:
    """Build the prompts, write them to `out` atomically, and return their records.

    Raises:
        UserError: the request is impossible (an unknown task, a haystack that is too short, a
            length that is too small for the text around the haystack, ...), or `out` exists.
        MissingEnvironmentError: the word lists for the keys, the model of the sentence splitter or
            the hub are not available.
    """
    tasks = tuple(find_task(name) for name in dict.fromkeys(request.tasks))
    questions = _read_questions(request, tasks)
    haystack = _read_essays(request, tasks)
    provenance = collect_provenance(sys.argv, seeds={"prompts": request.seed})
    maker = _Maker(request, open_known_tokenizer(request.tokenizer), haystack, questions)
    with publishing(out) as work:
        # Build the longest first, so that a haystack that is too short fails early.
        lengths = sorted(set(request.lengths), reverse=True)
        (work.folder / PROMPT_SETS).mkdir()
        prompt_sets = tuple(
            maker.prompt_set(task, length, work.folder) for task in tasks for length in lengths
        )
        _write(work.folder, prompt_sets, maker)
        work.finish(KIND, maker.parents(), provenance)
    return prompt_sets


def _read_essays(request: BuildPromptsRequest, tasks: Sequence[RecallTask]) -> Haystack | None:
    """Return the haystack of essays, or None if no task needs it."""
    if not any(task.essays for task in tasks):
        return None
    if request.haystack is None:
        names = [task.name for task in tasks if task.essays]
        raise UserError(
            f"{' and '.join(names)} {'hide their' if names[1:] else 'hides its'} needles in essays",
            hint="Choose them: --haystack hub, or --haystack PATH.",
        )
    return read_haystack(request.haystack)


def _read_questions(
    request: BuildPromptsRequest, tasks: Sequence[RecallTask]
) -> dict[str, QuestionFile]:
    """Return the questions of each task that has some, by the name of the task."""
    paths = {SQUAD_TASK.name: request.squad, HOTPOT_TASK.name: request.hotpot}
    questions = {}
    for task in tasks:
        if task.name not in paths:
            continue
        path = paths[task.name]
        if path is None:
            raise UserError(
                f"{task.name} needs a file with its questions",
                hint=f"Download it: {SOURCES[task.name]}\nThen: {OPTIONS[task.name]} FILE",
            )
        questions[task.name] = read_questions(task.name, path)
    return questions


class _Maker:
    """Builds prompt sets; those with the same kind of haystack share its tokens."""

    def __init__(
        self,
        request: BuildPromptsRequest,
        tokenizer: KnownTokenizer,
        haystack: Haystack | None,
        questions: Mapping[str, QuestionFile],
    ) -> None:
        self._request = request
        self._tokenizer = tokenizer
        self._haystack = haystack
        self._questions = questions
        self._bases: dict[bool, tuple[HaystackDocuments, SplicedText]] = {}
        self._tokenizer_sha256 = tokenizer.identity
        self.tokenizer_parts = tokenizer.parts

    def _streams(self) -> RandomStreams:
        return RandomStreams.of_seed(self._request.seed)

    def prompt_set(self, task: RecallTask, length: int, folder: Path) -> AnyRecord:
        """Build the prompts of one task at one length; inputs without haystack go to `folder`."""
        try:
            if isinstance(task, NiahTask):
                return self._single(task, length)
            drawer = self._drawer(task, length)
            archive = archive_of(folder / PROMPT_SETS, f"{task.name}@{length}")
            return make_prompt_set(
                task, length, drawer, self._request.samples, self._streams, archive
            )
        except TooShortError as error:
            assert self._haystack is not None
            raise UserError(
                f"{self._haystack.source}: its {len(self._haystack.words)} words reach "
                f"{error.tokens} tokens, but {length} are requested",
                hint=f"Request fewer than {error.tokens}, give a longer haystack, or --repeat.",
            ) from error
        except TooLongError as error:
            shortest = self._shortest(task, max(error.tokens, length + 1))
            raise UserError(
                f"{task.name}@{length}: its smallest prompt does not fit; with its answer, it "
                f"takes up to {error.tokens} tokens",
                hint=f"The smallest length that works here: --lengths {shortest}",
            ) from error
        except EqualNamesError as error:
            raise UserError(
                f"{task.name}@{length}: lm-eval draws two variables with the same name, and fails",
                hint="Choose another length, or other --tasks.",
            ) from error
        except ExampleError as error:
            raise UserError(
                f"{task.name}: with this tokenizer, the example that its prompts begin with takes "
                f"{error.tokens} tokens, and lm-eval allows 500",
                hint="lm-eval cannot build these prompts either. Choose other --tasks.",
            ) from error

    def _shortest(self, task: RecallTask, length: int) -> int:
        """Return the first length from `length` on that works, in steps of what is missing."""
        while True:
            drawer = self._drawer(task, length)
            try:
                draw_all(drawer, self._request.samples, self._streams)
            except TooLongError as error:
                length = max(error.tokens, length + 1)
            else:
                return length

    def _drawer(self, task: RecallTask, length: int) -> Drawer:
        """Return the drawer of a task other than those with a single needle."""
        if isinstance(task, NeedlesTask):
            if not task.essays:
                meter = TokenMeter(self._tokenizer, None)
                return NeedlesDrawer(task, length, needle_keys(), None, meter)
            essays, base = self._base(essays=True)
            assert isinstance(essays, Essays)
            meter = TokenMeter(self._tokenizer, base)
            return NeedlesDrawer(task, length, needle_keys(), essays, meter)
        if task is TRACKING_TASK:
            return TrackingDrawer(length, TokenMeter(self._tokenizer, self._noise(length)))
        meter = TokenMeter(self._tokenizer, None)
        if task is COMMON_WORDS_TASK:
            return CommonWordsDrawer(length, all_words(), meter)
        if task is CODED_WORDS_TASK:
            return CodedWordsDrawer(length, meter)
        return QuestionsDrawer(task, length, self._questions[task.name], meter)

    def _noise(self, length: int) -> SplicedText:
        """Return the repeated lines of ruler_vt, longer than any prompt."""
        sample = count_tokens(self._tokenizer, noise_text(_NOISE_SAMPLE_LINES))
        lines = _NOISE_SAMPLE_LINES * length // sample
        return SplicedText(self._tokenizer, noise_text(lines + lines // 8 + _NOISE_SAMPLE_LINES))

    def _single(self, task: NiahTask, length: int) -> PromptSetRecord:
        documents, base = self._base(essays=task.essays)
        maker = PromptSetMaker(
            task=task,
            context_tokens=length,
            haystack=documents,
            tokenizer=self._tokenizer,
            base=base,
            keys=needle_keys(),
        )
        return maker.make(self._request.samples, self._streams().python)

    def stored_haystack(self, prompt_sets: Sequence[AnyRecord]) -> str | None:
        """Return the part of the essays that the prompts need, or None if no task needs essays."""
        if self._haystack is None:
            return None
        _, base = self._base(essays=True)
        shared = [end for prompt_set in prompt_sets for end in _ends_of_essays(prompt_set)]
        return base.text[: max(shared)]

    def prompts(self, prompt_sets: Sequence[AnyRecord]) -> NiahPrompts:
        """Return the record that is common to all prompt sets."""
        return NiahPrompts(
            generator=_GENERATOR,
            tokenizer_sha256=self._tokenizer_sha256,
            words_sha256=WORDS_SHA256,
            seed=self._request.seed,
            haystack=self._source(),
            cells=tuple(prompt_set.name for prompt_set in prompt_sets),
        )

    def parents(self) -> tuple[Parent, ...]:
        """Return the tokenizer and, if there is one, the haystack as parents with hashes."""
        tokenizer = Parent(
            role="tokenizer",
            location=str(self._request.tokenizer),
            identity=f"sha256:{self._tokenizer_sha256}",
        )
        parents = [tokenizer]
        if self._haystack is not None:
            parents.append(
                Parent(
                    role="haystack",
                    location=self._haystack.source,
                    identity=f"sha256:{self._haystack.sha256}",
                )
            )
        for task, file in sorted(self._questions.items()):
            identity = f"sha256:{file.sha256}"
            parents.append(
                Parent(role=f"{task}_questions", location=str(file.path), identity=identity)
            )
        return tuple(parents)

    def _source(self) -> HaystackSource | None:
        if self._haystack is None:
            return None
        splitter = sentence_splitter()
        return HaystackSource(
            source=self._haystack.source,
            sha256=self._haystack.sha256,
            words=len(self._haystack.words),
            copies=self._haystack.copies,
            splitter=splitter.origin,
            splitter_sha256=splitter.sha256,
        )

    def _base(self, *, essays: bool) -> tuple[HaystackDocuments, SplicedText]:
        if essays not in self._bases:
            self._bases[essays] = self._essays() if essays else self._tokenised(Lines())
        return self._bases[essays]

    def _essays(self) -> tuple[HaystackDocuments, SplicedText]:
        assert self._haystack is not None
        split = sentence_splitter().split
        documents, base = self._tokenised(Essays(self._haystack.words, split))
        tokens, longest = len(base.tokens.ids), max(self._request.lengths)
        if tokens >= longest or not self._request.repeat:
            return documents, base
        self._haystack = self._haystack.repeated(longest // tokens + 2)
        return self._tokenised(Essays(self._haystack.words, split))

    def _tokenised(self, documents: HaystackDocuments) -> tuple[HaystackDocuments, SplicedText]:
        """Return `documents` and a tokenised one, if possible longer than all requested lengths."""
        longest = max(self._request.lengths)
        step = documents.increment(longest)
        available = documents.available or sys.maxsize
        units = _FIRST_GUESS_UNITS
        while True:
            base = SplicedText(self._tokenizer, documents.text(min(units + step, available)))
            tokens = base.tokens_before(documents.characters(units))
            if tokens >= longest or units + step >= available:
                return documents, base
            units = math.ceil(1.02 * units * longest / max(1, tokens))


def _ends_of_essays(prompt_set: AnyRecord) -> list[int]:
    """Return the characters at which the parts of the essays end that the prompts need."""
    if not find_task(prompt_set.task).essays:
        return []
    if isinstance(prompt_set, PromptSetRecord):
        return [document.shared for document in prompt_set.documents]
    return [end for sample in prompt_set.samples for _, end in sample.spans]


def _write(folder: Path, prompt_sets: Sequence[AnyRecord], maker: _Maker) -> None:
    """Write all files except the manifest."""
    write_json(folder / PROMPTS, to_json(maker.prompts(prompt_sets)))
    write_json(folder / TOKENIZER, to_json(maker.tokenizer_parts))
    text = maker.stored_haystack(prompt_sets)
    if text is not None:
        # Omit the timestamp, so that equal prompts give equal bytes.
        (folder / HAYSTACK).write_bytes(gzip.compress(text.encode(), mtime=0))
    for prompt_set in prompt_sets:
        path = folder / PROMPT_SETS / f"{prompt_set.name}.json"
        path.write_text(json.dumps(to_json(prompt_set), separators=(",", ":")) + "\n")
