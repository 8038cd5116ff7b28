"""Each reasoning task from problems to cells, through kills, damage and every kind of bad input."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from amnesia_bench.cli.main import main
from amnesia_bench.errors import UserError
from amnesia_bench.inference.generation import GENERATIONS, RUN
from amnesia_bench.inference.protocol import PromptRequest
from amnesia_bench.reasoning.score import CELLS, PROBLEMS, VERDICTS, read_cells
from amnesia_bench.reasoning.tasks import TASKS
from amnesia_bench.records.comparison import Change
from amnesia_bench.records.evaluation import Cell, Generation, Outcome
from amnesia_bench.store.checksums import CHECKSUMS
from tests.conftest import no_sandbox
from tests.support import reasoning
from tests.support.fake_engine import FakeEngine
from tests.support.reasoning import PROBLEMS as COUNT
from tests.support.reasoning import (
    THINKING,
    answer,
    compare_answers,
    run_task,
    score_answers,
    without_checksums,
    write_problems,
)

EACH_TASK = [
    pytest.param(task, marks=pytest.mark.programs) if task == "livecodebench" else task
    for task in TASKS
]


def unsafe(task: str) -> bool:
    """Whether the tests' own programs have to run without a sandbox."""
    return task == "livecodebench" and no_sandbox() is not None


def by_metric(cells: Sequence[Cell]) -> dict[str, Cell]:
    return {cell.metric: cell for cell in cells}


class KilledEngine(FakeEngine):
    """Takes the whole process with it, as kill -9 does, after some answers."""

    def __init__(self, after: int) -> None:
        super().__init__(answer)
        self._after = after

    def generate(self, requests: Sequence[PromptRequest]) -> Iterator[Generation]:
        for count, generation in enumerate(super().generate(requests)):
            if count == self._after:
                os.kill(os.getpid(), signal.SIGKILL)
            yield generation


@pytest.mark.parametrize("task", EACH_TASK)
def test_three_kills_leave_the_files_of_a_run_that_was_left_alone(
    task: str, tmp_path: Path
) -> None:
    data = write_problems(task, tmp_path / "data.jsonl")
    expected = run_task(task, data, tmp_path / "whole", FakeEngine(answer))
    for _ in range(3):
        child = os.fork()
        if child == 0:
            run_task(task, data, tmp_path / "killed", KilledEngine(after=2))
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        with (tmp_path / "killed" / GENERATIONS).open("ab") as file:
            file.write(b'{"request_sha256": "\xc3')  # and a line torn inside a character
    assert run_task(task, data, tmp_path / "killed", FakeEngine(answer)) == expected
    for name in (GENERATIONS, RUN):
        whole = (tmp_path / "whole" / name).read_bytes()
        assert (tmp_path / "killed" / name).read_bytes() == whole

    scored = [
        score_answers(tmp_path / name, unsafe_no_sandbox=unsafe(task))
        for name in ("whole", "killed")
    ]
    assert scored[0].verdicts == scored[1].verdicts
    cells = by_metric(scored[0].cells)
    repeats = 1 if task == "ifeval" else 3
    assert all((c.n, c.repeats, c.incomplete) == (COUNT, repeats, None) for c in cells.values())
    assert cells["length_cut_rate"].value == 0.0
    assert read_cells(scored[0].folder) == scored[0].cells
    right = sum(v.outcome is Outcome.CORRECT for v in scored[0].verdicts)
    assert scored[0].cells[0].value == pytest.approx(right / (COUNT * repeats))
    again = score_answers(tmp_path / "whole", unsafe_no_sandbox=unsafe(task))
    assert again == scored[0]


def test_scoring_imports_no_torch(tmp_path: Path) -> None:
    data = write_problems("math500", tmp_path / "data.jsonl")
    run_task("math500", data, tmp_path / "run", FakeEngine(answer))
    code = (
        "import sys; from amnesia_bench.cli.main import main; "
        f"code = main(['score', {str(tmp_path / 'run')!r}]); "
        "assert not {'torch', 'transformers'} & set(sys.modules), 'torch was imported'; "
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "avg@3" in done.stdout


def test_an_answer_inside_unfinished_thinking_is_none(tmp_path: Path) -> None:
    data = write_problems("math500", tmp_path / "data.jsonl")
    texts = ["\\boxed{9}</think>\\boxed{2}", "\\boxed{2}", "</think>no box"]
    engine = FakeEngine(lambda request: texts[request.key.repeat])
    run_task("math500", data, tmp_path / "run", engine, template=THINKING)
    outcomes = [v.outcome for v in score_answers(tmp_path / "run").verdicts[:3]]
    assert outcomes == [Outcome.CORRECT, Outcome.NO_ANSWER, Outcome.NO_ANSWER]


def test_two_methods_are_compared_problem_by_problem(tmp_path: Path) -> None:
    data = write_problems("gsm8k", tmp_path / "data.jsonl")
    right = FakeEngine(lambda request: f"\\boxed{{{request.key.doc + 2}}}")
    run_task("gsm8k", data, tmp_path / "right", right)
    run_task("gsm8k", data, tmp_path / "wrong", FakeEngine(lambda request: "\\boxed{0}"))
    score_answers(tmp_path / "right")
    with pytest.raises(UserError, match=r"wrong: answers but no cells.*\namnesia score"):
        compare_answers(tmp_path / "right", tmp_path / "wrong")
    score_answers(tmp_path / "wrong")
    for row in compare_answers(tmp_path / "right", tmp_path / "wrong"):
        assert (row.difference, row.a, row.b, row.change) == (-1.0, 1.0, 0.0, Change.WORSE)
        assert row.p_value == 2 / 2**COUNT
    shutil.copytree(tmp_path / "right", tmp_path / "copy")
    same = compare_answers(tmp_path / "right", tmp_path / "copy")
    assert [(row.difference, row.change) for row in same] == [(0.0, Change.NOT_SHOWN)] * 2
    assert main(["compare", str(tmp_path / "right"), str(tmp_path / "wrong")]) == 3


def test_a_comparison_with_scores_of_other_answers_is_refused(tmp_path: Path) -> None:
    data = write_problems("gsm8k", tmp_path / "data.jsonl")
    for name in ("first", "second"):
        run_task("gsm8k", data, tmp_path / name, FakeEngine(answer))
        score_answers(tmp_path / name)
    with (tmp_path / "second" / GENERATIONS).open("ab") as file:
        file.write(b"torn")
    with pytest.raises(UserError, match="the answers changed since they were scored"):
        compare_answers(tmp_path / "first", tmp_path / "second")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("1.0", "0.0", 1), "was changed since its cells were written"),
        (
            lambda text: "".join(text.splitlines(True)[:-1]),
            "was changed since its cells were written",
        ),
        (lambda text: None, r"problems\.jsonl: no such file\nScore the answers again"),
    ],
)
def test_values_of_problems_that_changed_are_not_compared(
    change: Callable[[str], str | None], message: str, tmp_path: Path
) -> None:
    data = write_problems("gsm8k", tmp_path / "data.jsonl")
    for name in ("first", "second"):
        run_task("gsm8k", data, tmp_path / name, FakeEngine(answer))
    _, second = (score_answers(tmp_path / name) for name in ("first", "second"))
    path = second.folder / PROBLEMS
    changed = change(path.read_text())
    path.unlink() if changed is None else path.write_text(changed)
    with pytest.raises(UserError, match=message):
        compare_answers(tmp_path / "first", tmp_path / "second")
    score_answers(tmp_path / "second")
    same = compare_answers(tmp_path / "first", tmp_path / "second")
    assert [d.difference for d in same] == [0.0, 0.0]


def test_cells_that_do_not_vouch_for_their_problems_are_scored_again(tmp_path: Path) -> None:
    data = write_problems("gsm8k", tmp_path / "data.jsonl")
    run_task("gsm8k", data, tmp_path / "run", FakeEngine(answer))
    scored = score_answers(tmp_path / "run")
    path = scored.folder / "cells.json"
    cells = json.loads(path.read_text())
    for cell in cells:
        cell["parents"] = [p for p in cell["parents"] if p["role"] != "problem_values"]
    path.write_text(json.dumps(cells))
    path.with_name(CHECKSUMS).unlink()  # as an older version left it
    with pytest.raises(UserError, match="do not record its hash") as raised:
        compare_answers(tmp_path / "run", tmp_path / "run")
    assert "amnesia score" in str(raised.value.hint)


@pytest.mark.parametrize("scorer", ["strict", "flexible"])
@pytest.mark.parametrize("task", ["math500", "gsm8k", "aime24"])
def test_a_number_of_any_length_is_one_wrong_answer(task: str, scorer: str, tmp_path: Path) -> None:
    data = write_problems(task, tmp_path / "data.jsonl")
    long = [
        "9" * 309,
        "1e999",
        "-" + "9" * 400,
        "0." + "3" * 4400,
        "1" * 5000,
        "1,000" + ",000" * 150,
    ]
    texts = [f"\\boxed{{{number}}}" for number in long] + ["so 1" + "0" * 5000, "\\boxed{9}"]
    engine = FakeEngine(lambda request: texts[request.key.doc])
    run_task(task, data, tmp_path / "run", engine, "eval.max_new_tokens=8000")
    outcomes = [v.outcome for v in score_answers(tmp_path / "run", scorer).verdicts[::3]]
    unboxed = Outcome.WRONG if scorer == "flexible" else Outcome.NO_ANSWER
    assert outcomes == [Outcome.WRONG] * 6 + [unboxed, Outcome.CORRECT]


def test_results_that_cannot_be_written_leave_the_answers(tmp_path: Path) -> None:
    data = write_problems("gsm8k", tmp_path / "data.jsonl")
    run_task("gsm8k", data, tmp_path / "run", FakeEngine(answer))
    (tmp_path / "run" / "scored_strict").write_text("in the way")
    with pytest.raises(UserError, match="exists and is not a folder"):
        score_answers(tmp_path / "run")


def test_programs_are_not_run_without_a_sandbox_unless_that_is_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_problems("livecodebench", tmp_path / "data.jsonl", count=2)
    run_task("livecodebench", data, tmp_path / "run", FakeEngine(answer))
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "/nowhere")
        assert main(["score", str(tmp_path / "run")]) == 6
        assert "--unsafe-no-sandbox" in capsys.readouterr().err
        assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [GENERATIONS, RUN]
    assert main(["score", str(tmp_path / "run"), "--unsafe-no-sandbox"]) == 0
    settings = read_cells(tmp_path / "run" / "scored_strict")[0].settings
    assert (settings["sandbox"], settings["seconds_per_test"]) == ("none", "6")


def test_a_program_drafted_in_thinking_that_the_template_opened_is_none(tmp_path: Path) -> None:
    data = write_problems("livecodebench", tmp_path / "data.jsonl", count=1)
    block = "```python\nprint(int(input()) + 2)\n```"
    texts = [f"Hm.</think>{block}", f"{block} but", f"```\nx\n```</think>{block}"]
    engine = FakeEngine(lambda request: texts[request.key.repeat])
    run_task("livecodebench", data, tmp_path / "run", engine, template=THINKING)
    outcomes = [v.outcome for v in score_answers(tmp_path / "run", unsafe_no_sandbox=True).verdicts]
    assert outcomes == [Outcome.CORRECT, Outcome.NO_ANSWER, Outcome.CORRECT]


@pytest.mark.programs
def test_the_checker_is_chosen_by_the_config_or_the_command_and_recorded(tmp_path: Path) -> None:
    data = write_problems("livecodebench", tmp_path / "data.jsonl", count=2)
    code = "```python\nprint(int(open(0).read()) + {})\n```"
    engine = FakeEngine(lambda request: code.format(request.key.doc + 2))
    found = {}
    for checker in ("lcb", "lenient"):
        folder = tmp_path / checker
        run_task("livecodebench", data, folder, engine, f"eval.checker={checker}")
        for scorer in (None, "strict", "lenient"):
            scored = score_answers(folder, scorer, unsafe_no_sandbox=unsafe("livecodebench"))
            settings = {cell.settings["checker"] for cell in scored.cells}
            found[checker, scorer] = (scored.folder.name, settings, scored.cells[0].value)
            limit = scored.cells[0].settings["time_limit"]
            assert limit == "6 s of CPU time, 60 s of wall-clock time"
    strict, lenient = ("scored_strict", {"lcb"}, 0.0), ("scored_lenient", {"lenient"}, 1.0)
    assert found == {
        ("lcb", None): strict,
        ("lcb", "strict"): strict,
        ("lcb", "lenient"): lenient,
        ("lenient", None): lenient,
        ("lenient", "strict"): strict,
        ("lenient", "lenient"): lenient,
    }


@pytest.mark.programs
def test_answers_of_before_there_was_a_choice_are_judged_as_published(tmp_path: Path) -> None:
    data = write_problems("livecodebench", tmp_path / "data.jsonl", count=1)
    run_task("livecodebench", data, tmp_path / "run", FakeEngine(answer))
    run = without_checksums(tmp_path / "run")
    assert run.pop("checker") == "lcb"
    (tmp_path / "run" / RUN).write_text(json.dumps(run))
    scored = score_answers(tmp_path / "run", unsafe_no_sandbox=unsafe("livecodebench"))
    assert scored.cells[0].settings["checker"] == "lcb"


@pytest.mark.programs
def test_more_workers_than_cores_are_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_problems("livecodebench", tmp_path / "data.jsonl", count=1)
    run_task("livecodebench", data, tmp_path / "run", FakeEngine(answer))
    judge = ["score", str(tmp_path / "run"), "--unsafe-no-sandbox"]
    assert "workers=1000" in refused([*judge, "--workers", "1000"], capsys)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [GENERATIONS, RUN]
    assert main([*judge, "--workers", "1"]) == 0


def test_only_answers_with_programs_record_a_checker(tmp_path: Path) -> None:
    data = write_problems("gsm8k", tmp_path / "data.jsonl")
    run_task("gsm8k", data, tmp_path / "run", FakeEngine(answer))
    assert "checker" not in json.loads((tmp_path / "run" / RUN).read_text())
    assert "checker" not in score_answers(tmp_path / "run").cells[0].settings


# -- bad input -------------------------------------------------------------------------------


@pytest.fixture
def answered(tmp_path: Path) -> Path:
    data = write_problems("math500", tmp_path / "data.jsonl")
    run_task("math500", data, tmp_path / "run", FakeEngine(answer))
    return tmp_path / "run"


def lines_of(folder: Path) -> list[bytes]:
    return (folder / GENERATIONS).read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize("cut", [1, 40, None])
def test_missing_answers_make_incomplete_cells_and_never_a_number(
    answered: Path, cut: int | None
) -> None:
    lines = lines_of(answered)
    # The last line cut inside, or missing as a whole.
    lines[-1] = lines[-1][:-cut] if cut else b""
    (answered / GENERATIONS).write_bytes(b"".join(lines))
    scored = score_answers(answered)
    assert {cell.value for cell in scored.cells} == {None}
    assert scored.cells[0].incomplete == "1 answer is missing, to problem 7 (2 of 3)"
    assert len(scored.verdicts) == 3 * COUNT - 1
    with pytest.raises(UserError, match="cannot compare an incomplete run"):
        compare_answers(answered, answered)


def test_a_line_damaged_in_the_middle_is_named(answered: Path) -> None:
    lines = lines_of(answered)
    lines[3] = lines[3][:50] + b"\xc3\n"
    (answered / GENERATIONS).write_bytes(b"".join(lines))
    with pytest.raises(UserError, match="line 4 is damaged"):
        score_answers(answered)


def test_answers_nobody_asked_for_are_an_error(answered: Path) -> None:
    without_checksums(answered)
    lines = lines_of(answered)
    lines[0] = lines[0].replace(b'"doc": 0', b'"doc": 8')
    (answered / GENERATIONS).write_bytes(b"".join(lines))
    with pytest.raises(UserError, match="has an answer that the run lacks"):
        score_answers(answered)


def test_no_answers_at_all_are_an_error(answered: Path, tmp_path: Path) -> None:
    (answered / GENERATIONS).write_bytes(b"")
    with pytest.raises(UserError, match="contains no answers"):
        score_answers(answered)
    with pytest.raises(UserError, match=f"{RUN} is missing"):
        score_answers(tmp_path)


def test_other_problems_than_were_answered_are_refused(answered: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(data.read_text().replace('"answer": "5"', '"answer": "6"'))
    with pytest.raises(UserError, match="these are not the problems that were answered"):
        score_answers(answered)
    data.unlink()
    with pytest.raises(UserError, match="no such file"):
        score_answers(answered)
    moved = write_problems("math500", tmp_path / "moved.jsonl")
    assert score_answers(answered, data=moved).cells[0].value is not None


def test_a_run_record_of_something_else_is_refused(answered: Path) -> None:
    path = answered / RUN
    run = without_checksums(answered)
    for change, said in (
        ({"task": "math5000"}, "no such task"),
        ({"repeats": "many"}, "repeats: expected int"),
        ({"repeats": "2"}, "has an answer that the run lacks"),
    ):
        path.write_text(json.dumps(run | change))
        with pytest.raises(UserError, match=said):
            score_answers(answered)
    path.write_text(json.dumps({name: run[name] for name in run if name != "repeats"}))
    with pytest.raises(UserError, match="missing key 'repeats'"):
        score_answers(answered)


def test_an_unknown_scorer_is_answered_with_those_there_are(answered: Path) -> None:
    with pytest.raises(UserError, match="Choose one of strict, flexible"):
        score_answers(answered, "strct")


def test_more_repeats_than_were_answered_are_another_run(answered: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="repeats was 3 and is now 4"):
        run_task("math500", tmp_path / "data.jsonl", answered, FakeEngine(answer), "eval.repeats=4")


def test_both_scorers_keep_their_own_results(answered: Path) -> None:
    strict, flexible = score_answers(answered), score_answers(answered, "flexible")
    rate = [by_metric(each.cells)["extraction_rate"].value for each in (strict, flexible)]
    assert rate[0] is not None
    assert rate[0] < 1.0
    assert rate[1] == 1.0
    for each in (strict, flexible):
        names = sorted(path.name for path in each.folder.iterdir())
        assert names == sorted([VERDICTS, PROBLEMS, CELLS, CHECKSUMS])
        assert {cell.settings["scorer"] for cell in each.cells} == {each.scorer}


# -- the commands ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reasoning.tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


SMALL = ("eval.max_new_tokens=8", "--limit", "8")


@pytest.mark.parametrize("task", EACH_TASK)
def test_a_tiny_model_runs_a_task_from_command_to_cells(
    task: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_problems(task, tmp_path / "data.jsonl", count=10)
    repeats = [] if task == "ifeval" else ["eval.repeats=2"]
    command = ["generate", "--checkpoint", str(checkpoint), "--task", task, "--data", str(data)]
    command += ["--method", "+SFT", *SMALL, *repeats]
    assert main([*command, "--out", str(tmp_path / "answers")]) == 0
    answers = str(tmp_path / "answers")
    judge = ["score", answers, *(["--unsafe-no-sandbox"] if unsafe(task) else [])]
    assert main([*judge, "--json"]) == 0
    said = capsys.readouterr().out
    cells = json.loads(said[said.index("{") :])["cells"]
    assert {(c["model"], c["method"], c["task"], c["n"]) for c in cells} == {
        ("tiny", "+SFT", task, 8)
    }
    settings = cells[0]["settings"]
    assert (settings["documents"], settings["documents_available"]) == ("8", "10")
    assert len(settings["chat_template"]) == 64
    assert settings["max_new_tokens"] == "8"


def test_another_logit_scale_stands_in_the_cells_and_is_another_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from amnesia_bench.modeling import HypeNetConfig, HypeNetForCausalLM
    from tests.support.training_runs import TINY

    folder, out = tmp_path / "tiny", tmp_path / "answers"
    config = HypeNetConfig(**(TINY | {"vocab_size": 259, "max_position_embeddings": 4096}))
    HypeNetForCausalLM(config).save_pretrained(folder)
    reasoning.byte_tokenizer().save_pretrained(folder)
    data = write_problems("gsm8k", tmp_path / "data.jsonl", count=2)
    command = ["generate", "--checkpoint", str(folder), "--task", "gsm8k", "--data", str(data)]
    command += ["--out", str(out), "eval.max_new_tokens=4", "eval.repeats=1"]
    assert main([*command, "--attn-logits-scaling", "hype 500"]) == 0
    assert main(["score", str(out), "--json"]) == 0
    said = capsys.readouterr().out
    cells = json.loads(said[said.index("{") :])["cells"]
    assert {cell["settings"]["attn_logits_scaling"] for cell in cells} == {"hype 500"}
    assert "attn_logits_scaling" in refused(command, capsys)


def refused(command: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(list(command)) == 2
    return capsys.readouterr().err


def test_a_model_without_a_template_needs_one_or_a_word(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = shutil.copytree(checkpoint, tmp_path / "base")
    (base / "chat_template.jinja").unlink(missing_ok=True)
    settings = json.loads((base / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (base / "tokenizer_config.json").write_text(json.dumps(settings))
    data = write_problems("gsm8k", tmp_path / "data.jsonl")
    out = tmp_path / "answers"
    command = ["generate", "--checkpoint", str(base), "--task", "gsm8k", "--data", str(data)]
    command += ["--out", str(out), "eval.repeats=1", "eval.temperature=0", *SMALL]
    said = refused(command, capsys)
    assert "no chat template" in said
    assert "--no-chat-template" in said
    assert not out.exists()
    template = tmp_path / "own.jinja"
    template.write_text("{% if x %}")
    said = refused([*command, "--chat-template", str(template)], capsys)
    assert "cannot be rendered" in said
    template.write_text(reasoning.CHATML)
    assert main([*command, "--chat-template", str(template)]) == 0
    other = [*command, "--no-chat-template"]
    other[other.index("--out") + 1] = str(tmp_path / "plain")
    assert main(other) == 0
    assert json.loads((tmp_path / "plain" / RUN).read_text())["chat_template"] == "null"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--task", "math50"], "Did you mean math500?"),
        (["--limit", "0"], "must be at least 1"),
        (["eval.repeat=3"], "eval.repeat: unknown key"),
        (["eval.temperature=0"], "2 repeats with temperature 0 give equal answers"),
        (["--data", "nowhere.jsonl"], "no such file"),
        (["--chat-template", "nowhere.jinja"], "cannot be read"),
        (["--checkpoint", "nowhere"], "nowhere"),
    ],
)
def test_a_mistake_in_the_command_is_one_message_before_anything_is_written(
    change: list[str],
    said: str,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = write_problems("gsm8k", tmp_path / "data.jsonl")
    out = tmp_path / "answers"
    command = ["generate", "--checkpoint", str(checkpoint), "--task", "gsm8k", "--data", str(data)]
    command += ["--out", str(out), "eval.repeats=2", *change]
    assert said in refused(command, capsys)
    assert not out.exists()


def test_generate_refuses_what_does_not_fit_and_names_an_option_that_it_has(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_problems("gsm8k", tmp_path / "data.jsonl", count=1)
    command = ["generate", "--checkpoint", str(checkpoint), "--task", "gsm8k", "--data", str(data)]
    command += ["--out", str(tmp_path / "answers"), "eval.repeats=2", "--max-context-tokens", "512"]
    message = refused(command, capsys)
    assert "do not fit the model's context of 512" in message
    assert "--max-context-tokens" in message
