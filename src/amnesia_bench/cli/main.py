"""Entry point of `amnesia`: find the command, run it, turn failures into exit codes.

A command is a module of this package with `add_arguments(parser)` and `run(args) -> ExitCode`,
with SUBCOMMANDS, or with both. It parses, makes a request, calls a front door and prints. Only the
module that was typed is imported, and `amnesia_bench` imports a front door where it is used:
`--help` must not wait for torch, hydra or rich.
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run `amnesia` with these arguments and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments:
        _top_level_parser().print_help(sys.stderr)
        return int(ExitCode.USER_ERROR)
    name = _top_level_parser().parse_args(arguments[:1]).command
    module = import_module(f"amnesia_bench.cli.{name.replace('-', '_')}")
    title, command, rest = _command(module, f"amnesia {name}", arguments[1:])
    parser = _parser(title, module)
    command.add_arguments(parser)
    # Intermixed: values of a config may stand before, between and behind the options.
    args = parser.parse_intermixed_args(_without_double_dash(rest))

    def run() -> ExitCode:
        _refuse_undecodable(arguments)
        return command.run(args)

    return guarded(title, run, getattr(args, "out", None))


def _command(
    module: ModuleType, title: str, arguments: list[str]
) -> tuple[str, Subcommand, list[str]]:
    """Return what was typed: its title, what runs it, and the arguments that are left."""
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
    return argparse.ArgumentParser(
        prog=title,
        description=module.__doc__,
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


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
