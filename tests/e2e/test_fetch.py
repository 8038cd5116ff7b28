"""`amnesia fetch`: everything that stages read from a network, and stages that then need none."""

from __future__ import annotations

import http.server
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import save

import amnesia_bench as ab
from amnesia_bench.cli.main import main
from amnesia_bench.config.cluster_schema import LocalCluster
from amnesia_bench.data.sources import hub_files, selection_of
from amnesia_bench.errors import MissingEnvironmentError, StageFailedError, UserError
from amnesia_bench.hub.fetched import WebFile, fetched_path, find_fetched
from amnesia_bench.lm_eval_bridge import task_sources
from amnesia_bench.pipeline import evaluations, stages
from amnesia_bench.pipeline import fetch as module
from amnesia_bench.pipeline import run as run_module
from amnesia_bench.pipeline.execute import execute
from amnesia_bench.pipeline.experiments import graphs_of
from amnesia_bench.pipeline.fetch import FetchItem
from amnesia_bench.pipeline.graph import stages_of
from amnesia_bench.pipeline.specs import write_specs
from amnesia_bench.pipeline.stage import Stage, closure
from amnesia_bench.reasoning.code.problems import FILES, load_problems
from amnesia_bench.reasoning.documents import load_documents
from amnesia_bench.reasoning.tasks import task_named
from amnesia_bench.recall.niah.haystack import read_haystack
from amnesia_bench.requests.experiments import FetchRequest
from amnesia_bench.requests.recall import HubEssays
from amnesia_bench.store.hashing import verify_manifest
from amnesia_bench.store.layout import STORE_VARIABLE, resumable_path
from tests.support import lcb
from tests.support.fake_hub import COMMIT, FakeHub, asked_by_libraries

MODEL, ROWS, NEWER = "owner/model", "owner/rows", "d" * 40
GSM8K = task_named("gsm8k").source.hub_id
COUNT = 1319
DATA = (f"data.source.dataset={ROWS}", "data.source.subsets=[cot]", "data.source.take_files=1",
        "data.sequence_tokens=256")  # fmt: skip


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def card(subset: str, **splits: str) -> bytes:
    files = "".join(f"  - split: {name}\n    path: {path}\n" for name, path in splits.items())
    text = f"---\nlicense: mit\nconfigs:\n- config_name: {subset}\n  data_files:\n{files}---\n"
    return text.encode()


def hub_with_everything() -> FakeHub:
    hub = FakeHub(
        MODEL,
        {
            "config.json": b'{"model_type": "qwen3"}',
            "model.safetensors": save({}),
            "README.md": b"a model",
        },
    )
    chains = [
        {"question": f"What is {i} + 1?", "response": f"<think>Add.</think>It is {i + 1}."}
        for i in range(40)
    ]
    hub.datasets = {
        ROWS: {
            "README.md": card("cot", train="cot/*.jsonl"),
            "cot/0.jsonl": lines(chains),
            "cot/1.jsonl": lines(chains[:1]),
            "other/0.jsonl": b"{}\n",
        },
        GSM8K: {
            "README.md": card("main", train="main/train-*", test="main/test-*"),
            "main/train-0.jsonl": lines([{"question": "q", "answer": "#### 0"}]),
            "main/test-0.jsonl": lines(
                [{"question": f"q{i}", "answer": f"#### {i}"} for i in range(COUNT)]
            ),
            "socratic/test-0.jsonl": b"{}\n",
        },
        "baber/paul_graham_essays": {"essays.jsonl": lines([{"text": "One two."}, {"text": "3"}])},
        "livecodebench/code_generation_lite": {
            name: lines([lcb.row(f"{name} {i}", [("1\n", "2\n")]) for i in range(167)])
            for name in FILES
        },
    }
    return hub


def graph() -> tuple[Stage, ...]:
    """Stages that read a model, training data, essays and two benchmarks."""
    tokenizer, model = stages.tokenizer(0), stages.downloaded(MODEL, "qwen3_laptop")
    chains = stages.data("miromind", DATA, tokenizer)
    profile = module.graphs_of(("experiment=table1", "profile=paper"))[0].job.config.profile
    prompts = evaluations.prompts(profile.recall, tokenizer, None)
    answered = []
    for name, overrides in (("gsm8k", ()), ("livecodebench", ("eval.window=167",))):
        task = task_named(name)
        config = evaluations.evaluation(task, overrides)
        answered.append(evaluations.answers(model, task, config, None, ab.EngineChoice()))
    return closure([chains, prompts, *answered])


@pytest.fixture
def experiment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Stage, ...]:
    made = graph()
    monkeypatch.setattr(module, "graphs_of", lambda _: [])
    monkeypatch.setattr(module, "stages_of", lambda _: made)
    monkeypatch.setattr(run_module, "fork_server", lambda _: nullcontext())
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return made


def fetch(store: Path, **options: Any) -> tuple[FetchItem, ...]:
    return ab.fetch(FetchRequest(overrides=(), store=store, **options))


@contextmanager
def no_network(patch: pytest.MonkeyPatch) -> Iterator[None]:
    def refuse(*_: object) -> None:
        raise OSError("a socket was opened")

    with patch.context() as context:
        context.setattr(socket.socket, "connect", refuse)
        yield


def test_what_was_fetched_is_all_that_stages_need(
    tmp_path: Path, experiment: tuple[Stage, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, store = hub_with_everything(), tmp_path / "store"
    with asked_by_libraries(hub, monkeypatch):
        planned = fetch(store, dry_run=True)
        assert hub.fetched == [] or all(name.endswith(".md") for name in hub.fetched)
        assert not store.exists()
        items = fetch(store)
    assert items == planned
    sizes = {item.use: item.bytes for item in items}
    rows, benchmark = hub.datasets[ROWS], hub.datasets[GSM8K]
    assert sizes["data miromind"] == len(rows["cot/0.jsonl"])  # take_files=1
    parts = ("README.md", "main/train-0.jsonl", "main/test-0.jsonl")
    assert sizes["benchmark gsm8k"] == sum(len(benchmark[name]) for name in parts)
    assert {item.commit for item in items} == {COMMIT}
    assert {item.licence for item in items} == {"mit"}
    assert not {"cot/1.jsonl", "other/0.jsonl", "socratic/test-0.jsonl", "test.jsonl"} & {
        *hub.fetched
    }
    for folder in store.glob("hub/*/"):
        assert verify_manifest(folder) == []

    monkeypatch.setenv(STORE_VARIABLE, str(store))
    with no_network(monkeypatch):
        problems = load_documents(task_named("gsm8k").source, None, 2)
        assert [row["answer"] for row in problems.rows] == ["#### 0", "#### 1"]
        assert problems.available == COUNT
        essays = read_haystack(HubEssays())
        assert essays.words == ("One", "two.", "3")
        assert essays.source == f"hub:baber/paul_graham_essays@{COMMIT}"
        assert len(load_problems(167)) == 167
        # A whole stage, which knows only the store of its spec.
        monkeypatch.setenv(STORE_VARIABLE, "elsewhere")
        (chains,) = (stage for stage in experiment if stage.kind == "data")
        ab.synthesize_tokenizer(chains.inputs[0].request, chains.inputs[0].folder(store))
        write_specs(store, [run_module._spec(store, chains, 1, LocalCluster(kind="local"))])
        monkeypatch.setattr(sys, "argv", list(sys.argv))
        assert execute(store, chains.id) == 0
    manifest = json.loads((chains.folder(store) / "manifest.json").read_text())
    (parent,) = manifest["parents"]
    assert parent["identity"] == f"commit:{COMMIT}:hf://datasets/{ROWS}@{COMMIT}/cot/0.jsonl"


def test_a_repository_keeps_its_commit_and_a_newer_one_is_noticed(
    tmp_path: Path, experiment: tuple[Stage, ...], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    hub, store = hub_with_everything(), tmp_path / "store"
    with asked_by_libraries(hub, monkeypatch):
        fetch(store)
        hub.fetched.clear()
        hub.commit = NEWER
        assert main(["fetch", "--store", str(store)]) == 0
    out = capsys.readouterr().out
    assert f"{ROWS}: the hub has a newer commit, {NEWER}. The commit in the store is kept." in out
    assert f"{MODEL}: the hub has a newer commit" in out
    assert f"{GSM8K}: the hub has" not in out  # its revision is pinned by the benchmark
    assert hub.fetched == []
    with asked_by_libraries(hub, monkeypatch):
        hub.refusals["/"] = (418, "")
        items = fetch(store)
    assert "cannot be reached" in next(x.note for x in items if x.source == ROWS)
    monkeypatch.setenv(STORE_VARIABLE, str(store))
    (chains,) = (stage.request for stage in experiment if stage.kind == "data")
    (file,) = hub_files(chains.config.source)
    Path(file.location).write_text("edited")
    with pytest.raises(StageFailedError, match=r"was changed since it was fetched[\s\S]*rm -r"):
        hub_files(chains.config.source)


def test_what_cannot_be_fetched_is_named_before_anything_is(
    tmp_path: Path, experiment: tuple[Stage, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, store = hub_with_everything(), tmp_path / "store"
    with asked_by_libraries(hub, monkeypatch):
        hub.gated = True
        hub.refusals[f"/api/models/{MODEL}/auth-check"] = (403, "GatedRepo")
        hub.refusals[f"/api/datasets/{ROWS}/auth-check"] = (403, "GatedRepo")
        with pytest.raises(UserError, match="gated") as refused:
            fetch(store)
        assert refused.value.what.count("is gated") == 2
        assert f"https://huggingface.co/datasets/{ROWS}, then: hf auth login" in str(refused.value)
        hub.gated = False
        usage = type("Usage", (), {"free": 100})
        with monkeypatch.context() as small:
            small.setattr("shutil.disk_usage", lambda _: usage)
            with pytest.raises(StageFailedError, match="bytes are needed and 100 are free"):
                fetch(store)
    assert not store.exists()
    with pytest.raises(MissingEnvironmentError, match="the hub cannot be reached"):
        fetch(store)


_KILLED = """\
import sys
from pathlib import Path
from amnesia_bench.hub.fetched import HubFiles
from amnesia_bench.hub.fetching import fetch_selection, names_of
from amnesia_bench.hub.repository import list_repository
files = HubFiles(repository="owner/rows", names=("cot/0.jsonl", "cot/1.jsonl"))
listing = list_repository("owner/rows", None, "dataset")
fetch_selection(files, listing, names_of(files, listing), Path(sys.argv[1]))
"""


def test_a_killed_fetch_keeps_complete_files_and_shows_nothing_unfinished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from amnesia_bench.hub.fetched import HubFiles

    hub, store = hub_with_everything(), tmp_path / "store"
    process: list[subprocess.Popen[bytes]] = []

    def kill(name: str) -> None:
        if name == "cot/1.jsonl":
            process[0].send_signal(signal.SIGKILL)

    selection = HubFiles(repository=ROWS, names=("cot/0.jsonl", "cot/1.jsonl"))
    with asked_by_libraries(hub, monkeypatch):
        hub.before = kill
        command = [sys.executable, "-c", _KILLED, str(store)]
        process.append(subprocess.Popen(command))
        assert process[0].wait() == -signal.SIGKILL
        assert find_fetched(selection, store) is None
        assert (resumable_path(fetched_path(store, selection)) / "cot/0.jsonl").is_file()
        hub.before = None
        subprocess.run(command, check=True)
    assert hub.fetched.count("cot/0.jsonl") == 1
    fetched = find_fetched(selection, store)
    assert fetched is not None
    assert fetched.record.names == selection.names
    left = {path.name for path in fetched.folder.parent.parent.iterdir()}
    assert left == {fetched.folder.parent.name}


def test_squad_comes_from_its_own_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site" / "dev-v2.0.json"
    site.parent.mkdir()
    answer = {"text": "blue"}
    question = {"question": "Which?", "answers": [answer], "is_impossible": False}
    paragraph = {"context": "The sky is blue.", "qas": [question]}
    site.write_text(json.dumps({"data": [{"paragraphs": [paragraph]}]}))
    monkeypatch.setattr(task_sources, "_SQUAD_URL", site.as_uri())
    selection = task_sources.task_selection("ruler_qa_squad")
    store = tmp_path / "store"
    module.fetch_web_file(selection, store)
    monkeypatch.setenv(STORE_VARIABLE, str(store))
    from lm_eval.tasks.ruler import qa_utils

    from amnesia_bench.lm_eval_bridge.retrieval_tasks import _squad_questions

    with no_network(monkeypatch):
        questions, texts, source = _squad_questions(qa_utils, None)
    assert (questions[0]["query"], texts) == ("Which?", ["The sky is blue."])
    assert source == "rajpurkar.github.io/dev-v2.0.json"
    site.unlink()
    with pytest.raises(MissingEnvironmentError, match=r"dev-v2.0.json: cannot be downloaded"):
        module.fetch_web_file(selection, tmp_path / "other")
    assert list((tmp_path / "other" / "hub").iterdir()) == []


def test_a_download_that_is_cut_off_is_no_file(tmp_path: Path) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"{")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        selection = WebFile(url=f"http://127.0.0.1:{server.server_port}/data.json")
        with pytest.raises(MissingEnvironmentError, match=r"cannot be downloaded .*1 bytes read"):
            module.fetch_web_file(selection, tmp_path)
    assert list((tmp_path / "hub").iterdir()) == []


def test_layer_selection_reads_what_was_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (scoring,) = (
        stage
        for stage in stages_of(graphs_of(("experiment=table1", "profile=one_gpu")))
        if stage.kind == "layer_scores"
    )
    changes = {"retrieval": ("swde",), "commonsense": ("arc_easy", "hellaswag")}
    scoring = replace(scoring, request=scoring.request.model_copy(update=changes))
    monkeypatch.setattr(module, "graphs_of", lambda _: [])
    monkeypatch.setattr(module, "stages_of", lambda _: (scoring,))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    arc = {"question": "?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"}
    hellaswag = {"activity_label": "x", "ctx_a": "a", "ctx_b": "b", "endings": ["c", "d"]}
    rows = {
        "hazyresearch/based-swde-v2": ("default", "validation", {"text": "the key", "value": "1"}),
        "allenai/ai2_arc": ("ARC-Easy", "test", arc),
        "Rowan/hellaswag": ("default", "validation", {**hellaswag, "label": "1"}),
    }
    hub = hub_with_everything()
    hub.datasets = {
        name: {
            "README.md": card(subset, **{split: f"{subset}/{split}-*"}),
            f"{subset}/{split}-0.jsonl": lines([row, row]),
            "other/0.jsonl": b"{}\n",
        }
        for name, (subset, split, row) in rows.items()
    }
    store = tmp_path / "store"
    with asked_by_libraries(hub, monkeypatch):
        items = fetch(store)
    uses = ["selection swde", "selection arc_easy", "selection hellaswag"]
    assert [item.use for item in items] == uses
    monkeypatch.setenv(STORE_VARIABLE, str(store))
    from amnesia_bench.lm_eval_bridge.commonsense_tasks import load_commonsense_tasks
    from amnesia_bench.lm_eval_bridge.retrieval_tasks import load_retrieval_tasks

    with no_network(monkeypatch):
        tasks = (
            *load_retrieval_tasks(("swde",), None, {}),
            *load_commonsense_tasks(("arc_easy", "hellaswag"), {}),
        )
    assert [task.num_documents for task in tasks] == [2, 2, 2]
    assert [task.source for task in tasks] == [f"hub:{name}@{COMMIT}" for name in rows]


def test_scoring_needs_the_problems_too(experiment: tuple[Stage, ...]) -> None:
    for answered in (stage for stage in experiment if stage.kind == "answers"):
        scored = evaluations.scores(answered, task_named(answered.request.task))
        assert module._selections(scored) == module._selections(answered) != {}


def test_the_selection_of_a_config_is_what_its_stage_looks_for() -> None:
    source = ab.load_data("fineweb_edu_stage2").source
    selection = selection_of(source)
    assert (selection.skip_files, selection.take_files, selection.split) == (1, 2, "train")
    assert selection.subsets == ("sample-100BT",)
