"""The command as its users meet it: output, exit codes, messages without tracebacks."""

import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from amnesia_bench.cli.main import main
from tests.support.checkpoints import SOFTMAX_LAYERS, drifted, random_model, save


@pytest.fixture
def folders(tmp_path: Path) -> tuple[str, str, str]:
    model = random_model(0)
    pre = save(tmp_path / "pre", model, shards=2)
    post = save(tmp_path / "post", drifted(model, 1), shards=2)
    return str(pre), str(post), str(tmp_path / "out")


def test_restore_verify_and_diff_in_a_row(
    folders: tuple[str, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    pre, post, out = folders
    assert main(["restore", "--pre", pre, "--post", post, "--out", out]) == 0
    printed = capsys.readouterr().out
    assert "6 tensors in 3 of 3 softmax layers (hypenet)" in printed
    assert "byte for byte" in printed
    assert main(["verify", out]) == 0
    assert "intact" in capsys.readouterr().out
    assert main(["diff", post, out, "--json"]) == 0
    difference = json.loads(capsys.readouterr().out)
    assert {(d["layer"], d["role"]) for d in difference["different"]} == {
        (layer, role) for layer in SOFTMAX_LAYERS for role in ("q", "k")
    }
    assert main(["diff", post, out]) == 0
    assert "6 tensors differ, 43 are identical" in capsys.readouterr().out
    assert main(["diff", pre, out]) == 0
    assert "other tensors, largest drift first" in capsys.readouterr().out


def test_json_is_the_record_on_disk(
    folders: tuple[str, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    pre, post, out = folders
    assert main(["restore", "--pre", pre, "--post", post, "--out", out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(
        (Path(out) / "restoration.json").read_text()
    )


def test_variant_layers_and_overrides(
    folders: tuple[str, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    pre, post, out = folders
    base = ["restore", "--pre", pre, "--post", post, "--json"]
    blend = [*base, "--out", out, "--variant", "qk_blend", "restore.rule.alpha=0.25"]
    assert main([*blend, "--layers", "1 3"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["variant"]["rule"] == {"kind": "blend", "alpha": 0.25}
    assert record["restored_layers"] == [1, 3]
    for tensor in record["tensors"]:
        undone = tensor["norm_restored_minus_post"] / tensor["norm_post_minus_pre"]
        assert undone == pytest.approx(0.25, abs=0.01)
    for layers, count in (("all", 3), ("top2", 2), ("[3]", 1)):
        assert main([*base, "--dry-run", "--layers", layers]) == 0
        assert len(json.loads(capsys.readouterr().out)["restored_layers"]) == count


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["restore", "--pre", "PRE", "--post", "POST"], 2, "--out is missing"),
        (["restore", "--pre", "PRE", "--post", "nowhere", "--out", "OUT"], 2,
         "amnesia download OWNER/nowhere --out nowhere"),
        (["restore", "--pre", "PRE", "--post", "POST", "--out", "PRE"], 2, "inside"),
        (["restore", "--pre", "PRE", "--post", "PRE", "--out", "OUT"], 2, "--allow-noop"),
        (["restore", "--pre", "PRE", "--post", "POST", "--out", "OUT", "--variant", "qk_pr"],
         2, "qk_pro"),
        (["restore", "--pre", "PRE", "--post", "POST", "--out", "OUT", "--layers", "two"],
         2, "top7"),
        (["restore", "--pre", "PRE", "--post", "POST", "--out", "OUT", "restore.rule.alfa=1"],
         2, "alfa"),
        (["verify", "PRE"], 2, "manifest.json"),
        (["diff", "PRE", "nowhere"], 2, "no such folder"),
    ],
)  # fmt: skip
def test_mistakes_are_one_message(
    arguments: list[str],
    code: int,
    says: str,
    folders: tuple[str, str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = dict(zip(("PRE", "POST", "OUT"), folders, strict=True))
    assert main([names.get(argument, argument) for argument in arguments]) == code
    errors = capsys.readouterr().err
    assert says in errors
    assert "Traceback" not in errors


def test_the_traceback_is_there_for_who_asks(
    folders: tuple[str, str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("AMNESIA_DEBUG", "1")
    assert main(["diff", folders[0], "nowhere"]) == 2
    errors = capsys.readouterr().err
    assert "Traceback" in errors
    assert "amnesia diff: nowhere: no such folder" in errors


def test_damage_is_exit_code_4(
    folders: tuple[str, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    pre, post, out = folders
    main(["restore", "--pre", pre, "--post", post, "--out", out])
    (Path(out) / "config.json").write_text("{}")
    assert main(["verify", out]) == 4
    assert "config.json" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["nonsense"], ["restore", "--pree", "x"]])
def test_unknown_words_end_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2


def test_no_command_shows_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "restore" in capsys.readouterr().err


def test_help_waits_for_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "hydra", "omegaconf", "pydantic", "numpy", "rich")
    script = (
        "import sys; from amnesia_bench.cli.main import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        f"sys.exit(' '.join(m for m in {heavy!r} if m in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "restore" in done.stdout
    assert "exit codes" in done.stdout


def test_restoring_never_imports_torch(folders: tuple[str, str, str]) -> None:
    pre, post, out = folders
    script = (
        "import sys; from amnesia_bench.cli.main import main\n"
        f"code = main(['restore', '--pre', {pre!r}, '--post', {post!r}, '--out', {out!r}])\n"
        "sys.exit('torch' if 'torch' in sys.modules else code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_paths_are_printed_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = tmp_path / "run[lr]" / ("x" * 150) / ("y" * 100)
    model = random_model(0)
    pre, post = save(odd / "pre", model), save(odd / "post[bold]", drifted(model, 1))
    out = odd / "out[" / "]"
    assert main(["restore", "--pre", str(pre), "--post", str(post), "--out", str(out)]) == 0
    assert f"amnesia verify {shlex.quote(str(out))}\n" in capsys.readouterr().out
    (out / "[red]").write_text("x")
    assert main(["verify", str(out)]) == 4
    assert "[red]: is not in the manifest" in capsys.readouterr().out


@pytest.mark.parametrize("json_flag", [[], ["--json"]])
def test_a_reader_that_leaves_early_is_no_failure(
    json_flag: list[str], folders: tuple[str, str, str]
) -> None:
    command = [sys.executable, "-m", "amnesia_bench.cli.main", "diff", *folders[:2], *json_flag]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.communicate()[1] == b""
    assert process.returncode == 0


def test_damage_is_exit_code_4_even_if_nobody_reads_on(folders: tuple[str, str, str]) -> None:
    pre, post, out = folders
    main(["restore", "--pre", pre, "--post", post, "--out", out])
    (Path(out) / "config.json").write_text("{}")
    command = [sys.executable, "-m", "amnesia_bench.cli.main", "verify", out]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.communicate()[1] == b""
    assert process.returncode == 4


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_behind_stdout_is_one_message(folders: tuple[str, str, str]) -> None:
    command = [sys.executable, "-m", "amnesia_bench.cli.main", "diff", *folders[:2]]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 6
    assert done.stderr == b"amnesia diff: stdout: No space left on device\n"


def test_a_closed_stdout_does_not_stop_the_work(folders: tuple[str, str, str]) -> None:
    pre, post, out = folders
    restore = f"restore --pre {pre} --post {post} --out {out} >&-"
    command = ["sh", "-c", f"{sys.executable} -m amnesia_bench.cli.main {restore}"]
    assert subprocess.run(command, check=False).returncode == 0
    assert main(["verify", out]) == 0


def test_sigterm_removes_what_is_half_written(
    folders: tuple[str, str, str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "amnesia_bench.surgery.restoration.write_shards",
        lambda *args: signal.raise_signal(signal.SIGTERM),
    )
    pre, post, out = folders
    assert main(["restore", "--pre", pre, "--post", post, "--out", out]) == 143
    assert capsys.readouterr().err == "amnesia restore: terminated\n"
    assert {path.name for path in Path(out).parent.iterdir()} == {"pre", "post"}
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_values_may_stand_anywhere_and_layers_be_typed_with_zeros(
    folders: tuple[str, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    pre, post, _ = folders
    blend = ["restore.rule.alpha=0.25", "--layers", "01", "restore.select.heads=[0]"]
    command = ["restore", "--pre", pre, "--post", post, "--dry-run", "--json"]
    assert main([*command, "--variant", "qk_blend", *blend]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["variant"]["rule"]["alpha"] == 0.25
    assert record["variant"]["select"]["heads"] == [0]
    assert record["restored_layers"] == [1]


def test_ctrl_c_is_no_traceback(
    folders: tuple[str, str, str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("amnesia_bench.surgery.restoration.write_shards", interrupted)
    pre, post, out = folders
    assert main(["restore", "--pre", pre, "--post", post, "--out", out]) == 130
    assert capsys.readouterr().err == "amnesia restore: interrupted\n"
    assert {path.name for path in Path(out).parent.iterdir()} == {"pre", "post"}
