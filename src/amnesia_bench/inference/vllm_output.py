"""What vLLM and its processes print: kept from the terminal, and searched after a failure.

vLLM's model runs in processes of its own. If one of them fails, the caller gets an error without a
reason, and the reason is somewhere in pages of printed tracebacks.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Parts of the last line of a traceback that give no reason, since they name another process.
_NO_REASON = ("Engine core initialization failed", "WorkerProc", "EngineCore encountered", "See ")
_ERROR_LINE = re.compile(
    r"(?:^|[\] ])(?:\w+\.)*\w*(?:Error|Exception): (?P<reason>.+)$"
    # The second line of an error of pydantic, whose first line only names a class of vLLM.
    r"|^ +(?:Value|Assertion) error, (?P<detail>.+?)(?: \[type=.*)?$"
)
_TRANSFORMERS = "The transformers engine runs more models: --engine transformers."
# For each reason that users meet, what they can do.
_HINTS = (
    (
        r"KV cache memory|cache blocks|larger than the (available|maximum)",
        "Allow fewer tokens of prompt and answer: --max-context-tokens N. On a CPU, "
        "VLLM_CPU_KVCACHE_SPACE is the size of the cache in GiB.",
    ),
    (
        r"[Oo]ut of memory|OutOfMemory|can't allocate memory|Free memory on device",
        "Other programs may use the GPU: see nvidia-smi. Otherwise use a GPU with more memory, or "
        "allow fewer tokens: --max-context-tokens N.",
    ),
    (
        r"max_model_len",
        "The limit in config.json is lower than --max-context-tokens. If the model supports it, "
        "set VLLM_ALLOW_LONG_MAX_MODEL_LEN=1.",
    ),
)


class CapturedOutput:
    """The output of a vLLM engine and its processes, in a temporary file without a name."""

    def __init__(self) -> None:
        # The processes write to the file until they end.
        self._file = tempfile.TemporaryFile()  # noqa: SIM115

    @contextmanager
    def capture(self) -> Iterator[None]:
        """Send the output of this process, and of the processes that it starts, to the file."""
        _flush()
        saved = {number: os.dup(number) for number in (1, 2)}
        try:
            for number in saved:
                os.dup2(self._file.fileno(), number)
            yield
        finally:
            _flush()
            for number, original in saved.items():
                os.dup2(original, number)
                os.close(original)

    def text(self) -> str:
        """Return the output so far."""
        size = os.fstat(self._file.fileno()).st_size
        return os.pread(self._file.fileno(), size, 0).decode(errors="replace")

    def explain(self, error: BaseException) -> tuple[str, str]:
        """Return the reason of a failure and a hint; all output is saved to a file that it names.

        Args:
            error: the error that vLLM raised in this process.
        """
        text = self.text()
        reason = failure_reason(f"{text}\n{type(error).__name__}: {error}")
        with tempfile.NamedTemporaryFile(
            "w", prefix="amnesia-vllm-", suffix=".log", delete=False, encoding="utf-8"
        ) as file:
            file.write(f"{text}\n{type(error).__name__}: {error}\n")
        hint = next((hint for pattern, hint in _HINTS if re.search(pattern, reason)), _TRANSFORMERS)
        return reason, f"{hint}\nAll output of vLLM: {Path(file.name)}"


def failure_reason(text: str) -> str:
    """Return the message of the error to which a failure in vLLM's output goes back.

    This is the last error that does not only name a process that failed.
    """
    reason = ""
    for line in text.splitlines():
        found = _ERROR_LINE.search(line)
        if found is None or " WARNING " in line or " INFO " in line:
            continue
        message = (found["reason"] or found["detail"]).strip()
        if not any(part in message for part in _NO_REASON):
            reason = message
    return reason or "it ended without an error message"


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
