"""Entry point of `amnesia`: find the command, run it, turn failures into exit codes.

A command is a module of this package with `add_arguments(parser)` and `run(args) -> ExitCode`.
Only the one that was typed is imported, and each imports what it needs when it runs: `--help`
must not wait for torch, hydra or rich.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import cast

from amnesia_bench import __version__
from amnesia_bench.errors import AmnesiaError, ExitCode, UserError
from amnesia_bench.printable import message
from amnesia_bench.store.layout import MANIFEST

COMMANDS = {
    "check": "say whether a fine-tune lost long-range recall: the regression gate",
    "restore": "repair POST: put back W_Q and W_K of the softmax layers from PRE",
    "diff": "say which tensors of two checkpoints differ, and by how much",
    "verify": "check a folder that amnesia wrote against its manifest",
    "niah": "build needle-in-a-haystack prompts, byte for byte those of lm-eval",
    "eval": "score a checkpoint by lm-evaluation-harness",
    "rank-layers": "rank softmax layers by what retrieval loses without them",
    "analyze": "measure where gradients and attention reach, before and after a fine-tune",
    "generate": "let a model answer a reasoning benchmark, resumable",
    "score": "judge such answers; compare them with another model's",
    "plan": "say what an experiment will take, before anything starts",
    "run": "run an experiment: all its stages that are not done yet, and its report",
    "status": "say how far the stages of an experiment are",
    "logs": "print what a stage said",
    "clean": "remove the stages of an experiment",
    "report": "lay results out in the paper's tables, next to the paper's numbers",
    "sandbox": "try the sandbox that programs written by models are run in",
    "download": "fetch a model from the Hugging Face hub, every file proven",
    "data": "prepare training data once, or look at what was prepared",
    "init": "make a model with random weights, to pretrain",
    "convert": "make a HypeNet checkpoint out of a Qwen3 teacher",
    "train": "train a stage of HypeNet, or fine-tune; estimate what that takes",
}

EXIT_CODES = (
    "exit codes: 0 done, 2 mistake in command, config or input, 3 recall regression, "
    "4 stage failed, 5 busy, 6 environment, 75 saved: start again\n"
    "With AMNESIA_DEBUG=1 in the environment an error also shows its traceback."
)

# What a shell makes of a command that one of these has ended.
INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM


class _TerminatedError(BaseException):
    """SIGTERM as an exception, so that what was half written is removed on the way out."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `amnesia` with these arguments and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    top_level = _top_level_parser()
    if not arguments:
        top_level.print_help(sys.stderr)
        return int(ExitCode.USER_ERROR)
    command = top_level.parse_args(arguments[:1]).command
    module = import_module(f"amnesia_bench.cli.{command.replace('-', '_')}")
    parser = argparse.ArgumentParser(
        prog=f"amnesia {command}",
        description=module.__doc__,
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    # Intermixed: values of a variant may stand before, between and behind the options.
    args = parser.parse_intermixed_args(_without_double_dash(arguments[1:]))
    output = getattr(args, "out", None)

    def run() -> ExitCode:
        _refuse_undecodable(arguments)
        return cast("ExitCode", module.run(args))

    with _terminating():
        return _run(command, run, output)


def _without_double_dash(arguments: Sequence[str]) -> list[str]:
    """Return arguments that mean the same without `--`, behind which no word is an option.

    argparse drops it too early where options and other words are mixed. Words with a dash in front
    are names of files, and those have another spelling.
    """
    if "--" not in arguments:
        return list(arguments)
    i = list(arguments).index("--")
    behind = (f"./{word}" if word.startswith("-") else word for word in arguments[i + 1 :])
    return [*arguments[:i], *behind]


def _refuse_undecodable(arguments: Sequence[str]) -> None:
    """Refuse names that no record could hold: records are UTF-8.

    Raises:
        UserError: an argument, or the path of this folder, is not UTF-8.
    """
    try:
        here = str(Path.cwd())
    except FileNotFoundError as error:
        raise UserError("The folder that you are in was removed.", hint="cd to another.") from error
    for text in (*arguments, here):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UserError(
                f"{text.encode('utf-8', 'backslashreplace').decode()}: not a name in UTF-8",
                hint="Rename it, or make a link to it with another name.",
            ) from error


def _run(command: str, run: Callable[[], ExitCode], output: Path | None) -> int:
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # the caller closed it
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - to the very end
    there_before = _is_finished(output)
    try:
        return int(run())
    except AmnesiaError as error:
        if os.environ.get("AMNESIA_DEBUG") == "1":
            raise
        sys.stderr.write(message(f"amnesia {command}: {error}\n"))
        return int(error.exit_code)
    except (KeyboardInterrupt, _TerminatedError) as end:
        interrupted = isinstance(end, KeyboardInterrupt)
        said = "interrupted" if interrupted else "terminated"
        if not there_before and _is_finished(output):
            # Running it again would only fail with "already exists".
            complete = f"amnesia {command}: {said}, but {output} was complete already\n"
            sys.stderr.write(message(complete))
            return int(ExitCode.DONE)
        sys.stderr.write(f"amnesia {command}: {said}\n")
        return INTERRUPTED if interrupted else TERMINATED


def _is_finished(output: Path | None) -> bool:
    """Return whether the folder that a command writes is there: it appears whole or not at all."""
    try:
        return output is not None and (output / MANIFEST).is_file()
    except OSError:
        return False


@contextmanager
def _terminating() -> Iterator[None]:
    def terminate(number: int, frame: object) -> None:
        raise _TerminatedError

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _top_level_parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="amnesia",
        description="Did a fine-tune make a hybrid LLM forget how to look far back? Repair it.",
        epilog=f"commands:\n{listed}\n\n`amnesia COMMAND --help` says more.\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"amnesia_bench {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    return parser


if __name__ == "__main__":
    sys.exit(main())
