"""Code of a checkpoint runs only under a hash that covers all of it."""

import json
from pathlib import Path
from typing import Any

import pytest

from amnesia_bench.errors import UserError
from amnesia_bench.training.trusted_code import check_trust

MAP = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    (tmp_path / "code.py").write_text("from .sub import more")
    (tmp_path / "sub/more.py").write_text("x = 1")
    write_map(tmp_path, MAP)
    return tmp_path


def write_map(folder: Path, auto_map: Any, name: str = "config.json") -> None:
    (folder / name).write_text(json.dumps({"model_type": "mine", "auto_map": auto_map}))


def asked_for(folder: Path) -> str:
    with pytest.raises(UserError, match="contains model code") as caught:
        check_trust(folder, None)
    assert "sub/more.py" in str(caught.value)
    return next(word for word in str(caught.value).replace(",", "").split() if len(word) == 64)


def test_the_hash_that_is_asked_for_is_the_one_that_is_taken(folder: Path) -> None:
    digest = asked_for(folder)
    check_trust(folder, digest)
    with pytest.raises(UserError, match=r"set train.trusted_code_sha256"):
        check_trust(folder, digest[::-1])


def test_every_change_of_the_code_or_of_what_runs_changes_the_hash(folder: Path) -> None:
    def add(name: str, text: str) -> None:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    changes = [
        lambda: add("sub/more.py", "x = 2"),
        lambda: add("sub/further.py", ""),
        lambda: add("deep/er.py", "x = 1"),
        lambda: (folder / "sub/further.py").rename(folder / "sub/other.py"),
        lambda: add("code.py", "import os"),
        lambda: write_map(folder, MAP | {"AutoModelForCausalLM": "code.Other"}),
        lambda: write_map(folder, {"AutoTokenizer": ["code.Tokenizer", None]},
                          "tokenizer_config.json"),
        lambda: write_map(folder, {"AutoTokenizer": [None, "code.Fast"]}, "tokenizer_config.json"),
    ]  # fmt: skip
    seen = [asked_for(folder)]
    for change in changes:
        change()
        seen.append(asked_for(folder))
        with pytest.raises(UserError, match=r"does not match train.trusted_code_sha256"):
            check_trust(folder, seen[-2])
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize(
    "reference",
    [
        "sub/more.Model",
        "sub.more.Model",
        "/elsewhere/folder--code.Model",
        "owner/repository--code.Model",
        "../code.Model",
        "..code.Model",
        "code",
        "",
        "code.Model\n",
        "c\\ode.Model",
        7,
        [["code.Model", "owner/repository--code.Model"]],
    ],
)
@pytest.mark.parametrize("where", ["config.json", "tokenizer_config.json"])
def test_a_name_that_leads_elsewhere_is_refused(folder: Path, reference: Any, where: str) -> None:
    write_map(folder, MAP | {"AutoModel": reference}, where)
    with pytest.raises(UserError, match=rf"{where}: auto_map refers to .*not a class"):
        check_trust(folder, None)


def test_no_code_or_nothing_that_names_it(folder: Path) -> None:
    write_map(folder, None)
    with pytest.raises(UserError, match="has no code for it"):
        check_trust(folder, None)
    write_map(folder, MAP)
    for path in folder.rglob("*.py"):
        path.unlink()
    with pytest.raises(UserError, match="has no code for it"):
        check_trust(folder, None)


def test_a_link_to_a_folder_is_refused(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "evil.py").write_text("x = 1")
    (folder / "linked").symlink_to(elsewhere)
    with pytest.raises(UserError, match="linked: is a link to a folder"):
        check_trust(folder, None)
