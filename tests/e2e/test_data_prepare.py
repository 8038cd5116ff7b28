"""`amnesia data prepare` and `inspect`, from files of rows to sequences."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from amnesia_bench.cli.main import main
from amnesia_bench.data import SequenceStore, open_store
from amnesia_bench.data.conversation import Reason
from amnesia_bench.data.data_tokenizer import DataTokenizer, decoder
from amnesia_bench.data.prepare import PreparationProgress
from amnesia_bench.errors import StageFailedError, UserError
from amnesia_bench.tokenizers.tokenizer import load_tokenizer
from tests.support.shared import shared_path
from tests.support.small_data import TEXT, cot_row, data_config, prepare, save_tokenizer, write_rows


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def documents_of(store: SequenceStore) -> list[tuple[np.ndarray, np.ndarray]]:
    """Tokens and mask of every document, padding left out."""
    found = []
    for i in range(store.num_sequences):
        sequence = store.sequence(i)
        assert sum(sequence.document_lengths) == store.sequence_tokens
        ends = np.cumsum(sequence.document_lengths)
        parts = list(
            zip(np.split(sequence.tokens, ends[:-1]), np.split(sequence.loss_mask, ends[:-1]),
                strict=True)
        )  # fmt: skip
        if sequence.padding:
            tokens, mask = parts.pop()
            assert len(tokens) == sequence.padding
            assert not mask.any()
        found += parts
    return found


def cot_rows_of_gsm8k(path: Path) -> list[dict[str, str]]:
    rows = []
    for line in path.read_text().splitlines():
        row = json.loads(line)
        steps, _, answer = row["answer"].partition("\n#### ")
        response = f"<think>\n{steps}\n</think>\n\n{answer}"
        rows.append({"question": row["question"], "response": response})
    return rows


def test_masks_of_gsm8k_decode_to_exactly_the_answers_with_the_tokenizer_of_qwen(
    tmp_path: Path,
) -> None:
    rows = cot_rows_of_gsm8k(shared_path("data", "gsm8k_train.jsonl"))
    tokenizer = shared_path("data", "qwen2_tokenizer")
    config = data_config(sequence_tokens=2048)
    source = write_rows(tmp_path / "gsm8k.jsonl", rows)
    prepare(config, tokenizer, tmp_path / "out", [source])
    store = open_store(tmp_path / "out")
    decode = decoder(tmp_path / "out" / "tokenizer.json")
    documents = documents_of(store)
    trained = sorted(decode(tokens[mask].tolist()) for tokens, mask in documents)
    assert trained == sorted(f"{row['response']}<|im_end|>" for row in rows)
    assert len(trained) == 7473
    whole = sorted(decode(tokens.tolist()) for tokens, _ in documents)
    assert whole == sorted(
        f"<|im_start|>user\n{row['question']}<|im_end|>\n<|im_start|>assistant\n"
        f"{row['response']}<|im_end|>\n"
        for row in rows
    )


def test_concatenated_texts_are_the_texts_with_their_separators(
    tmp_path: Path, tokenizer: Path
) -> None:
    texts = [f"Page {i} of <|im_end|> the web. " * (i % 9 + 1) for i in range(50)]
    half = [write_rows(tmp_path / f"{k}.jsonl", [{"text": t} for t in texts[k::2]]) for k in (0, 1)]
    prepare(data_config(**TEXT), tokenizer, tmp_path / "out", half)
    store = open_store(tmp_path / "out")
    assert not store.isolate_documents
    sequences = [store.sequence(i) for i in range(store.num_sequences)]
    assert [s.padding for s in sequences[:-1]] == [0] * (len(sequences) - 1)
    stream = np.concatenate([s.tokens[: 256 - s.padding] for s in sequences])
    loaded = DataTokenizer(load_tokenizer(tokenizer))
    decode = decoder(tmp_path / "out" / "tokenizer.json")
    assert decode(stream.tolist()) == "".join(f"{t}<|endoftext|>" for t in texts[::2] + texts[1::2])
    assert int((stream == loaded.separator("<|endoftext|>")).sum()) == len(texts)
    assert loaded.id_of("<|im_end|>") not in stream  # markup in a page is plain characters
    trained = np.concatenate([s.loss_mask[: 256 - s.padding] for s in sequences])
    assert trained.all()


def test_one_document_a_sequence_with_pack_single(tmp_path: Path, tokenizer: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [cot_row(i) for i in range(9)])
    prepare(data_config(pack="single"), tokenizer, tmp_path / "out", [rows])
    store = open_store(tmp_path / "out")
    assert store.num_sequences == 9
    assert {len(store.sequence(i).document_lengths) for i in range(9)} == {2}


LONG = {"question": "q", "response": f"<think>\n{'r' * 600}\n</think>\n\na"}
LONG_QUESTION = {"question": "q" * 300, "response": "<think>\nr\n</think>\n\na"}


@pytest.mark.parametrize(
    ("policy", "documents", "fragments", "untrained"),
    [("drop", 10, 0, 0), ("truncate", 11, 2, 1), ("split", 14, 5, 1)],
)
def test_what_is_too_long_is_dropped_cut_or_split_and_counted(
    tmp_path: Path, tokenizer: Path, policy: str, documents: int, fragments: int, untrained: int
) -> None:
    rows = [*(cot_row(i) for i in range(10)), LONG, LONG_QUESTION]
    source = write_rows(tmp_path / "rows.jsonl", rows)
    prepare(data_config(over_length=policy), tokenizer, tmp_path / "out", [source])
    store = open_store(tmp_path / "out")
    found = documents_of(store)
    counts = store.description.counts
    assert len(found) == documents
    assert all(mask.any() for _, mask in found)  # nothing without a trained token
    assert (counts.documents, counts.over_length) == (12, 2)
    assert (counts.fragments, counts.untrained_fragments) == (fragments, untrained)


def test_rows_of_no_use_are_dropped_and_counted_by_reason(tmp_path: Path, tokenizer: Path) -> None:
    bad = [
        {"question": "q", "response": "<think>a<think>b</think>c"},
        {"question": "q", "response": "no thought"},
        {"question": "", "response": "<think>\nr\n</think>\n\na"},
        {"question": None, "response": "<think>\nr\n</think>\n\na"},
    ]
    source = write_rows(tmp_path / "rows.jsonl", [*(cot_row(i) for i in range(96)), *bad])
    prepare(data_config(max_dropped=0.04), tokenizer, tmp_path / "out", [source])
    counts = open_store(tmp_path / "out").description.counts
    assert (counts.rows, counts.documents) == (100, 96)
    assert counts.dropped == {Reason.EMPTY: 2, Reason.NO_CHAIN: 1, Reason.THINK_BLOCK: 1}
    with pytest.raises(StageFailedError) as caught:
        prepare(data_config(max_dropped=0.03), tokenizer, tmp_path / "other", [source])
    assert "4 of 100 rows are unusable, more than max_dropped=0.03" in caught.value.what
    assert f"{source}:97: {Reason.THINK_BLOCK}" in caught.value.what
    assert not (tmp_path / "other").exists()
    with pytest.raises(StageFailedError) as caught:
        prepare(data_config(), tokenizer, tmp_path / "other", [write_rows(source, bad[1:2])])
    assert f"none of 1 rows yields a document ({Reason.NO_CHAIN}: 1)" in caught.value.what
    assert f"The first is {source}:1: {Reason.NO_CHAIN}" in caught.value.what
    assert "messages" in str(caught.value.hint)
    untrained = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a", "weight": 0},
    ]
    with pytest.raises(StageFailedError) as caught:
        prepare(data_config(rows={"kind": "messages"}), tokenizer, tmp_path / "other",
                [write_rows(source, [{"messages": untrained}])])  # fmt: skip
    assert f"The first is {source}:1: {Reason.UNTRAINED}" in caught.value.what


def test_a_share_of_the_rows_is_chosen_by_the_seed(tmp_path: Path, tokenizer: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", [cot_row(i) for i in range(400)])
    shas = []
    for i, seed in enumerate((0, 0, 1)):
        config = data_config(sample_rows=0.25, seed=seed)
        done = prepare(config, tokenizer, tmp_path / str(i), [source])
        assert 70 < done.counts.rows < 130
        shas.append(open_store(tmp_path / str(i)).sha256)
    assert shas[0] == shas[1] != shas[2]


def test_files_of_the_users_own_are_read_whole_unless_a_share_is_asked_for(
    tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"conversations": [{"from": "human", "value": row["question"]},
                           {"from": "gpt", "value": row["response"]}], "id": i}
        for i, row in enumerate(map(cot_row, range(100)))
    ]  # fmt: skip
    source = write_rows(tmp_path / "rows.jsonl", rows)
    command = ["data", "prepare", "openthoughts3", "--tokenizer", str(tokenizer), "--input",
               str(source), "data.sequence_tokens=512", "--out"]  # fmt: skip
    assert main([*command, str(tmp_path / "whole")]) == 0
    assert "unused columns: id" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "share"), "data.sample_rows=0.1"]) == 0
    whole, share = (open_store(tmp_path / name).description for name in ("whole", "share"))
    assert whole.counts.rows == 100
    assert 2 < share.counts.rows < 25
    assert "rows read (sample_rows=0.1)" in capsys.readouterr().out
    assert (whole.config["sample_rows"], share.config["sample_rows"]) == (1.0, 0.1)


def test_a_config_for_files_of_the_users_own_needs_them_and_says_what_it_leaves_out(
    tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["data", "prepare", "messages", "--tokenizer", str(tokenizer), "--out",
               str(tmp_path / "out"), "data.sequence_tokens=512", "--chat", "qwen3"]  # fmt: skip
    assert main(command) == 2
    assert "Pass them with --input PATH" in capsys.readouterr().err
    (tmp_path / "in").mkdir()
    for name in ("train", "test"):
        said = [{"role": "user", "content": name}, {"role": "assistant", "content": "a"}]
        write_rows(tmp_path / "in" / f"{name}.jsonl", [{"messages": said}])
    assert main([*command, "--input", str(tmp_path / "in")]) == 0
    assert f"{tmp_path}/in/test.jsonl: skipped, its name is that" in capsys.readouterr().err
    assert open_store(tmp_path / "out").description.counts.rows == 1


def test_escape_sequences_in_texts_and_names_do_not_reach_the_terminal(
    tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "\x1b]0;pwned\x07"
    row = {"question": f"q{evil}", "response": "<think>\nr\n</think>\n\na\u202e\tb\rc"}
    rows = write_rows(tmp_path / f"{evil}.jsonl", [row | {f"column{evil}": 1}])
    command = ["data", "prepare", "miromind", "--tokenizer", str(tokenizer), "--out",
               str(tmp_path / "out"), "--input", str(rows), "data.sequence_tokens=256"]  # fmt: skip
    assert main(command) == 0
    assert main(["data", "inspect", str(tmp_path / "out"), "--sequence", "0"]) == 0
    rows.write_text(json.dumps(row | {"half \ud800": 1}) + "\n")  # which no file could hold
    assert main([*command, f"--out={tmp_path / 'again'}"]) == 0
    wrong = write_rows(tmp_path / f"wrong{evil}.jsonl", [{f"column{evil}": 1}])
    assert main([*command[:-2], str(wrong), f"--out={tmp_path / 'other'}"]) == 2
    shown = capsys.readouterr()
    assert "q\\x1b]0;pwned\\x07" in shown.out
    assert "a\\u202e" in shown.out
    assert "b\\rc" in shown.out
    assert "unused columns: column\\x1b]0;pwned\\x07" in shown.err
    assert r"half \ud800" in shown.err
    assert r"wrong\x1b" in shown.err
    assert not {"\x1b", "\x07", "\u202e", "\r"} & {*shown.out, *shown.err}


def test_nothing_left_is_an_error(tmp_path: Path, tokenizer: Path) -> None:
    blank = tmp_path / "blank.jsonl"
    blank.write_text("\n\n")
    with pytest.raises(StageFailedError, match=r"none of 0 rows yields a document"):
        prepare(data_config(), tokenizer, tmp_path / "out", [blank])
    long = write_rows(tmp_path / "long.jsonl", [LONG])
    with pytest.raises(StageFailedError, match=r"all 1 documents are longer than a sequence"):
        prepare(data_config(), tokenizer, tmp_path / "out", [long])


def test_a_wrong_line_is_named_and_what_came_before_is_not_done_again(
    tmp_path: Path, tokenizer: Path
) -> None:
    good = write_rows(tmp_path / "good.jsonl", [cot_row(i) for i in range(30)])
    other = tmp_path / "other.jsonl"
    other.write_text('{"question": ')
    with pytest.raises(UserError, match=r"other.jsonl:1: not JSON"):
        prepare(data_config(), tokenizer, tmp_path / "out", [other, good])
    assert {path.name for path in tmp_path.iterdir()} == {"good.jsonl", "other.jsonl"}
    with pytest.raises(UserError, match=r"other.jsonl:1: not JSON"):
        prepare(data_config(), tokenizer, tmp_path / "out", [good, other])
    assert not (tmp_path / "out").exists()
    write_rows(other, [cot_row(i) for i in range(30, 40)])
    told: list[PreparationProgress] = []
    prepare(data_config(), tokenizer, tmp_path / "out", [good, other], progress=told.append)
    finished = {progress.step: progress for progress in told if progress.finished}
    assert finished["1/2 good.jsonl"].reused
    assert not finished["2/2 other.jsonl"].reused
    assert {path.name for path in tmp_path.iterdir()} == {"good.jsonl", "other.jsonl", "out"}


@pytest.mark.parametrize("changed", ["input", "setting", "tokenizer"])
def test_a_changed_input_setting_or_tokenizer_is_never_taken_for_the_old_one(
    tmp_path: Path, tokenizer: Path, changed: str
) -> None:
    files = [write_rows(tmp_path / f"{k}.jsonl", [cot_row(k), cot_row(k + 9)]) for k in (0, 1)]
    spoil = files[1].read_text()
    files[1].write_text("no json")
    with pytest.raises(UserError, match="not JSON"):
        prepare(data_config(), tokenizer, tmp_path / "out", files)
    files[1].write_text(spoil)
    config = data_config()
    if changed == "input":
        write_rows(files[0], [cot_row(5)])
    elif changed == "setting":
        config = data_config(chat={"style": "qwen3", "loss_on": "all"})
    else:
        tokenizer = save_tokenizer(tmp_path / "tokenizer", extra="What")
    prepare(config, tokenizer, tmp_path / "out", files)
    prepare(config, tokenizer, tmp_path / "fresh", files)
    assert open_store(tmp_path / "out").sha256 == open_store(tmp_path / "fresh").sha256


def arguments(tmp_path: Path, tokenizer: Path, *more: str) -> list[str]:
    rows = tmp_path / "rows.jsonl"
    if not rows.exists():
        write_rows(rows, [cot_row(i) for i in range(40)])
    return ["data", "prepare", "miromind", "--tokenizer", str(tokenizer), "--out",
            str(tmp_path / "out"), "--input", str(rows), *more]  # fmt: skip


def test_the_command_prints_counts_and_inspect_shows_what_is_trained(
    tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    assert main(arguments(tmp_path, tokenizer, "data.sequence_tokens=512")) == 0
    printed = capsys.readouterr()
    assert "sequences of 512 tokens" in printed.out
    assert "1/1 rows.jsonl: 40 documents" in printed.err
    out = str(tmp_path / "out")
    assert main(["data", "inspect", out]) == 0
    assert "Files: intact" in capsys.readouterr().out
    assert main(["data", "inspect", out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"]["documents"] == 40
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert main(["data", "inspect", out, "--sequence", "0"]) == 0
    shown = capsys.readouterr().out
    green, dim, end = "\x1b[32m", "\x1b[2m", "\x1b[0m"
    assert f"{dim}<|im_start|>user" in shown
    assert f"{green}<think>" in shown
    assert f"<|im_end|>{end}" in shown
    assert "padding tokens" in shown
    shard = tmp_path / "out" / "tokens-00000.bin"
    shard.write_bytes(bytes([shard.read_bytes()[0] ^ 1]) + shard.read_bytes()[1:])
    assert main(["data", "inspect", out]) == 4
    assert "tokens-00000.bin has other contents" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["prepare", "miromnd", "--tokenizer", "t", "--out", "o"], "Did you mean miromind?"),
        (["prepare", "miromind", "--tokenizer", "t", "--out", "o"], "t: no such folder"),
        (["prepare", "miromind", "--tokenizer", "t", "--out", "o", "data.pack=concat"],
         "pack concat cuts documents anywhere: over_length: null"),
        (["prepare", "miromind", "--tokenizer", "t", "--out", "o", "data.source.revision=main"],
         "data.source.revision=main"),
        (["inspect", "nothing"], "not a finished artifact"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_message(
    command: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["data", *command]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["prepare", "miromind"], "arguments are required: --tokenizer, --out"),
        (["prepare", "miromind", "--tokenizer", "t"], "arguments are required: --out"),
        (["prepare", "miromind", "--tokenizer", "t", "--out", "o", "--sequence", "0"],
         "unrecognized arguments: --sequence"),
        (["inspect", "nothing", "--out", "o"], "unrecognized arguments: --out o"),
        (["synthesize", "tokenizer"], "arguments are required: --out"),
        (["synthesize", "programs", "--rows", "3", "--out", "x", "data.seed=3"],
         "unrecognized arguments: data.seed=3"),
    ],
)  # fmt: skip
def test_a_sub_command_has_its_own_options_only(
    command: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["data", *command])
    assert said in capsys.readouterr().err


def test_without_a_commit_the_hub_is_not_asked(
    tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    assert main(["data", "prepare", "tulu3", "--tokenizer", str(tokenizer), "--out", out]) == 2
    assert "git ls-remote" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_one_message(
    tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = arguments(tmp_path, tokenizer)
    tmp_path.chmod(0o500)
    assert main(command) == 6
    assert "no permission" in capsys.readouterr().err


def test_a_full_disk_is_one_message_and_the_command_can_be_repeated(
    tmp_path: Path, tokenizer: Path
) -> None:
    command = arguments(tmp_path, tokenizer)
    limited = subprocess.run(
        [sys.executable, "-m", "amnesia_bench.cli.main", *command],
        capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, 2_000)),
    )  # fmt: skip
    assert limited.returncode == 4
    assert "no space left" in limited.stderr
    assert "finished input files are kept" in limited.stderr
    assert "Traceback" not in limited.stderr
    assert not (tmp_path / "out").exists()
    assert main(command) == 0
