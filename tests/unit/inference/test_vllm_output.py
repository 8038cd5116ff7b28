"""What vLLM prints: the reason of a failure is found in it, and nothing reaches the terminal."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from amnesia_bench.errors import StageFailedError
from amnesia_bench.inference.vllm_engine import VllmEngine
from amnesia_bench.inference.vllm_output import CapturedOutput, failure_reason

# The form of vLLM 0.32: a logged traceback, the same printed by the process, and the error of the
# process that waited for it.
FAILURE = """\
(MainProcess pid=1) WARNING 11-30 02:18:54 [base.py:380] ValueError: Tokenizer not available
(EngineCore pid=2) ERROR 11-30 02:19:01 [core.py:1046] Traceback (most recent call last):
(EngineCore pid=2) ERROR 11-30 02:19:01 [core.py:1046]   File "core.py", line 1, in run_engine_core
(EngineCore pid=2) ERROR 11-30 02:19:01 [core.py:1046] ValueError: head_dim=16 is not supported.
(EngineCore pid=2) Process EngineCore:
(EngineCore pid=2) Traceback (most recent call last):
(EngineCore pid=2) ValueError: head_dim=16 is not supported.
(MainProcess pid=1) Traceback (most recent call last):
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""


def test_the_reason_is_the_error_of_the_process_that_failed() -> None:
    assert failure_reason(FAILURE) == "head_dim=16 is not supported."


def test_the_reason_of_a_validation_error_is_its_second_line() -> None:
    text = (
        "ValidationError: 1 validation error for ModelConfig\n"
        "  Value error, max_model_len (9) is greater than 4 [type=value_error, input_value=...]\n"
        "    For further information visit https://errors.pydantic.dev\n"
    )
    assert failure_reason(text) == "max_model_len (9) is greater than 4"


def test_without_an_error_the_reason_says_so() -> None:
    assert failure_reason("Killed\n") == "it ended without an error message"


@pytest.mark.parametrize(
    ("reason", "hint"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "nvidia-smi"),
        ("ValueError: 7 GiB KV cache is needed, available KV cache memory (1)", "--max-context"),
        ("ValueError: head_dim=16 is not supported.", "--engine transformers"),
    ],
)
def test_output_is_captured_and_a_hint_names_its_file(
    reason: str, hint: str, capfd: pytest.CaptureFixture[str]
) -> None:
    output = CapturedOutput()
    with output.capture():
        os.write(1, b"from this process\n")
        program = f"import sys; print({reason!r}, file=sys.stderr)"
        subprocess.run([sys.executable, "-c", program], check=True)
    os.write(1, b"afterwards\n")
    assert capfd.readouterr().out == "afterwards\n"
    found, advice = output.explain(RuntimeError("Engine core initialization failed."))
    assert found == reason.partition(": ")[2]
    assert hint in advice
    file = Path(advice.rpartition(": ")[2])
    try:
        assert file.read_text().startswith(f"from this process\n{reason}\n")
    finally:
        file.unlink()


def test_an_engine_that_dies_names_the_reason() -> None:
    output = CapturedOutput()
    with output.capture():
        os.write(2, b"(EngineCore pid=2) torch.OutOfMemoryError: CUDA out of memory. Tried 2 GiB\n")

    def generate(*_: object, **__: object) -> None:
        raise RuntimeError("EngineCore encountered an issue. See stack trace (above).")

    engine = object.__new__(VllmEngine)
    engine._llm = SimpleNamespace(generate=generate)
    engine._output = output
    with pytest.raises(StageFailedError, match=r"vLLM stopped \(CUDA out of memory") as failure:
        engine._run([], [])
    hint = str(failure.value.hint)
    assert "--max-context-tokens" in hint
    Path(hint.rpartition(": ")[2]).unlink()
