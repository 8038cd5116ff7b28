"""One word, one thing: no public class or function name twice in the package."""

import ast
from collections import defaultdict
from pathlib import Path

import amnesia_bench
from amnesia_bench import FRONT_DOORS, REQUESTS

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "amnesia_bench"

# What every module of a command holds: `cli/main.py` finds them by these names.
COMMAND_PROTOCOL = ("add_arguments", "run")


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
    assert not twice


def test_no_function_of_another_module_is_called_like_the_entry_of_a_command() -> None:
    names = _public_names()
    entries = {name: names[name] for name in COMMAND_PROTOCOL if name in names}
    assert entries == {"run": ["pipeline/experiments.py"]}  # the front door of an experiment


def test_nothing_but_a_front_door_is_called_like_one() -> None:
    names = _public_names()
    for name, door in FRONT_DOORS.items():
        assert names[name] == [f"{door.module.replace('.', '/')}.py"] or names[name] == [
            f"{door.module.replace('.', '/')}/__init__.py"
        ], name


def test_every_request_is_exported_and_nothing_else_as_a_request() -> None:
    exported = {f"requests/{module}.py": set() for module in REQUESTS.values()}
    for name, module in REQUESTS.items():
        exported[f"requests/{module}.py"].add(name)
        assert getattr(amnesia_bench, name).__name__ == name
    names = _public_names()
    for path, requests in exported.items():
        assert {n for n, modules in names.items() if modules == [path]} == requests, path
