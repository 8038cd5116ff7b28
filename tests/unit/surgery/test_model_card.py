"""The model card of a repaired checkpoint: metadata of the hub, and never over a card of post's."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from amnesia_bench.surgery.model_card import card_name, licence_of, model_card
from tests.support.checkpoints import drifted, random_model, save
from tests.support.surgery import restore, verify

CARD = "---\nlicense: {licence}\nlanguage: en\n---\n# Mine\n"


@pytest.fixture
def pre(tmp_path: Path) -> Path:
    return save(tmp_path / "pre", random_model(0))


@pytest.fixture
def post(tmp_path: Path) -> Path:
    return save(tmp_path / "post", drifted(random_model(0), 1))


def metadata(text: str) -> dict[str, object]:
    loaded = yaml.safe_load(text.split("---\n")[1])
    assert isinstance(loaded, dict)
    return loaded


def test_the_card_names_both_checkpoints_and_every_restored_tensor(
    tmp_path: Path, pre: Path, post: Path
) -> None:
    record = restore(pre, post, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert metadata(text) == {
        "base_model": ["post", "pre"],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["qk-restore", "merge"],
    }
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == len(record.tensors)
    first = record.tensors[0]
    assert first.relative_drift is not None
    assert rows[0].startswith(f"| {first.layer} | q | {100 * first.relative_drift:.3g} % |")
    assert "amnesia restore --pre pre --post post --variant qk --out REPAIRED" in text
    measured = replace(record, variant={"name": "lm_cocktail", "measured": {"alpha": 0.5}})
    command = "amnesia restore --pre pre --post post --variant lm_cocktail --measured MEASURED"
    assert command in model_card(measured, pre, post)
    assert not verify(tmp_path / "out").findings
    (tmp_path / "out" / "README.md").write_text("edited")
    (finding,) = verify(tmp_path / "out").findings
    assert finding.startswith("README.md: has 6 bytes")


def test_the_same_restore_writes_the_same_card_anywhere(
    tmp_path: Path, pre: Path, post: Path
) -> None:
    restore(pre, post, tmp_path / "out")
    (tmp_path / "moved").mkdir()
    for folder in (pre, post):
        shutil.move(folder, tmp_path / "moved" / folder.name)
    restore(tmp_path / "moved" / "pre", tmp_path / "moved" / "post", tmp_path / "moved" / "again")
    card = (tmp_path / "out" / "README.md").read_bytes()
    assert (tmp_path / "moved" / "again" / "README.md").read_bytes() == card
    assert str(tmp_path).encode() not in card


def test_the_card_of_post_is_kept_and_its_licence_repeated(
    tmp_path: Path, pre: Path, post: Path
) -> None:
    (post / "README.md").write_text(CARD.format(licence="mit"))
    (pre / "README.md").write_text(CARD.format(licence="other\nlicense_name: gemma"))
    record = restore(pre, post, tmp_path / "out")
    assert (tmp_path / "out" / "README.md").read_text() == (post / "README.md").read_text()
    text = (tmp_path / "out" / "MODEL_CARD.md").read_text()
    assert metadata(text)["license"] == "mit"
    (warning,) = (line for line in record.warnings if "licence" in line)
    assert warning.startswith(
        "The cards state different licences: pre license: other; license_name: gemma, "
        "post license: mit."
    )
    assert warning in text
    (pre / "README.md").write_text(CARD.format(licence="mit"))
    assert not [line for line in restore(pre, post, None).warnings if "licence" in line]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("no metadata\nlicense: mit\n", ()),
        ("---\nlicense: mit\n", ()),
        ("---\nlicense:\n- mit\n---\n", ()),
        ("---\r\nlicense: mit\r\n---\r\n", ("license: mit",)),
        ("---\ntags: [a]\n---\n\n---\nlicense: mit\n---\n", ()),
    ],
)
def test_only_a_licence_in_the_metadata_counts(
    tmp_path: Path, text: str, lines: tuple[str, ...]
) -> None:
    (tmp_path / "README.md").write_bytes(text.encode())
    assert licence_of(tmp_path) == lines


def test_names_on_the_hub_are_found(tmp_path: Path, pre: Path, post: Path) -> None:
    snapshot = tmp_path / "models--org--base-2b" / "snapshots" / ("a" * 40)
    shutil.copytree(pre, snapshot)
    config = json.loads((post / "config.json").read_text())
    (post / "config.json").write_text(json.dumps(config | {"_name_or_path": "me/tuned"}))
    restore(snapshot, post, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert metadata(text)["base_model"] == ["me/tuned", "org/base-2b"]


def test_a_name_that_is_no_yaml_or_markdown_is_quoted(
    tmp_path: Path, pre: Path, post: Path
) -> None:
    odd = post.rename(tmp_path / "a: `b` [c]")
    restore(pre, odd, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert metadata(text)["base_model"] == ["a: `b` [c]", "pre"]
    assert "--post 'a: `b` [c]'" in text
    assert "# a: \\`b\\` \\[c\\], repaired" in text


def test_a_free_name_is_taken_in_any_spelling() -> None:
    assert card_name([]) == "README.md"
    assert card_name(["readme.md"]) == "MODEL_CARD.md"
    assert card_name(["README.md", "MODEL_CARD.md", "RESTORED.md"]) is None
