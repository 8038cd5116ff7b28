"""The regression gate: `check` tests whether a fine-tune lost long-range recall."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from amnesia_bench.inference.candidates import Candidate, open_candidates
from amnesia_bench.inference.load_engine import open_engine
from amnesia_bench.inference.protocol import Engine, silent
from amnesia_bench.recall.check_summary import check_markdown
from amnesia_bench.recall.measure import PromptSet, open_prompt_sets_for
from amnesia_bench.recall.niah.build import build_prompts
from amnesia_bench.recall.niah.catalogue import find_task
from amnesia_bench.recall.niah.haystack import read_haystack
from amnesia_bench.recall.niah.tasks import NIAH_SAMPLING
from amnesia_bench.recall.sequential_check import CheckPlan, CheckResult, compare_checkpoints
from amnesia_bench.records import codec
from amnesia_bench.records.artifacts import Parent, Provenance
from amnesia_bench.records.recall import CheckReport, Rule
from amnesia_bench.requests.recall import BuildPromptsRequest, CheckRequest
from amnesia_bench.store.layout import MANIFEST, store_root
from amnesia_bench.store.provenance import collect_provenance
from amnesia_bench.store.publish import publishing
from amnesia_bench.tokenizers.tokenizer import legacy_tokenizer_identity, tokenizer_identity

ERROR_RATE = 0.025


@dataclass(frozen=True, kw_only=True)
class FinishedCheck:
    """The result of a check: its report with the verdict, and the folder with all its records."""

    report: CheckReport
    folder: Path


def check(
    request: CheckRequest,
    *,
    progress: Callable[[str], None] = silent,
    count: Callable[[int, int], None] = silent,
) -> FinishedCheck:
    """Compare a fine-tune with its base on needle prompts, and publish the records.

    The checkpoints answer a few prompts at a time until the verdict is clear. Answers are stored in
    the work folder: a killed check resumes from them, and all checks of a checkpoint share them.

    Args:
        request: the checkpoints, the prompts and the tolerated drop in recall.
        progress: called with one line of text before a checkpoint answers prompts, and after each
            verdict.
        count: called with the number of answered requests and the total number of requests; both
            restart whenever a checkpoint receives further prompts.

    Raises:
        UserError: a checkpoint, its tokenizer or the prompts do not fit the request.
        MissingEnvironmentError: a requirement for building the prompts is missing, or vLLM is not
            installed.
        StageFailedError: a checkpoint changed during the check, or its logits are not finite.
        BusyError: another process is writing to the same folder of answers.
    """
    for task in request.tasks or ():
        find_task(task)
    provenance = collect_provenance(["amnesia", *sys.argv[1:]], seeds={})
    folders = {"pre": request.pre, "post": request.post}
    if request.restored is not None:
        folders["restored"] = request.restored
    candidates = open_candidates(folders)
    work = request.work or store_root()
    prompt_sets = _prompt_sets(request, candidates, work)
    plan = CheckPlan(
        pre=candidates[0],
        post=candidates[1],
        restored=candidates[2] if len(candidates) > 2 else None,
        prompt_sets=prompt_sets,
        sampling=replace(NIAH_SAMPLING, max_new_tokens=request.defaults.max_new_tokens),
        rule=Rule(
            samples=request.choice.samples or min(map(len, prompt_sets)),
            margin=request.margin,
            error_rate=ERROR_RATE,
        ),
    )

    def load(candidate: Candidate) -> Engine:
        return open_engine(request.engine, candidate, count=count)

    result = compare_checkpoints(plan, load, work, progress)
    return FinishedCheck(report=result.report, folder=publish_check(result, work, provenance))


def _prompt_sets(
    request: CheckRequest, candidates: Sequence[Candidate], work: Path
) -> tuple[PromptSet, ...]:
    choice = request.choice
    folder = request.prompts
    if folder is None:
        assert choice.lengths is not None
        assert choice.tasks is not None
        assert choice.samples is not None
        build = BuildPromptsRequest(
            tokenizer=request.pre,
            lengths=choice.lengths,
            tasks=choice.tasks,
            haystack=request.haystack,
            samples=choice.samples,
        )
        folder = _built_prompts(build, work, candidates[0].tokenizer)
    return open_prompt_sets_for(folder, candidates, choice)


def _built_prompts(build: BuildPromptsRequest, work: Path, tokenizer: Any) -> Path:
    """Return the prompts folder in `work`; build the prompts if no earlier check has done so."""
    depends = {
        "lengths": build.lengths,
        "tasks": build.tasks,
        "haystack": None if build.haystack is None else read_haystack(build.haystack).sha256,
        "samples": build.samples,
    }
    # Older versions hashed the tokenizer differently. If such a version built these prompts, its
    # folder is reused, so that its checks can resume.
    folder, older_folder = (
        work / "prompts" / _short_digest({**depends, "tokenizer": identity(tokenizer)})
        for identity in (tokenizer_identity, legacy_tokenizer_identity)
    )
    if (older_folder / MANIFEST).is_file():
        return older_folder
    if not (folder / MANIFEST).is_file():
        build_prompts(build, folder)
    return folder


def _short_digest(depends: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:16]


def publish_check(result: CheckResult, work: Path, provenance: Provenance) -> Path:
    """Write the records of a check into a folder whose name is a hash of their contents.

    `check.json` contains the report, `cells.json` one `Cell` per checkpoint, task and length,
    `samples.jsonl` one scored answer per line, and `summary.md` the text for a CI comment. If a
    folder with the same contents exists, it stays unchanged.

    Returns:
        The folder with the records.

    Raises:
        BusyError, StageFailedError, MissingEnvironmentError: see `publishing`.
    """
    files = {
        "check.json": _json(codec.to_json(result.report)),
        "cells.json": _json(codec.to_json(result.cells)),
        "samples.jsonl": "".join(
            json.dumps(codec.to_json(sample)) + "\n" for sample in result.samples
        ),
        "summary.md": check_markdown(result.report),
    }
    content = "".join(files.values()).encode()
    final = work / "checks" / hashlib.sha256(content).hexdigest()[:16]
    if (final / MANIFEST).is_file():
        return final
    with publishing(final) as publication:
        for name, text in files.items():
            (publication.folder / name).write_text(text, encoding="utf-8")
        publication.finish("check", _parents(result), provenance)
    return final


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _parents(result: CheckResult) -> tuple[Parent, ...]:
    parents = {
        (parent.role, parent.location): parent for cell in result.cells for parent in cell.parents
    }
    return tuple(parents.values())
