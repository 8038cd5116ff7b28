"""One word, one thing: no public class or function name twice in the package."""

import ast
from collections import defaultdict
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "amnesia_bench"

# What every module of a command holds: `cli/main.py` finds them by these names.
COMMAND_PROTOCOL = ("add_arguments", "run")
# Names that still stand in several modules. Entries only leave.
ALLOWED = ("main",)


def _public_names() -> dict[str, list[str]]:
    holders = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        module = path.relative_to(PACKAGE).as_posix()
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            command = module.startswith("cli/") and node.name in COMMAND_PROTOCOL
            if not node.name.startswith("_") and not command:
                holders[node.name].append(module)
    return holders


def test_no_public_name_stands_for_two_things() -> None:
    twice = {name: modules for name, modules in _public_names().items() if len(modules) > 1}
    assert not {name: twice[name] for name in twice if name not in ALLOWED}


def test_no_function_of_another_module_is_called_like_the_entry_of_a_command() -> None:
    assert not set(COMMAND_PROTOCOL) & set(_public_names())
