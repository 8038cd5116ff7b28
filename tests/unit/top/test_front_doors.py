"""The entrance to the package: what it exports, what it takes, and how it answers mistakes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import amnesia_bench as ab
from amnesia_bench.errors import MissingEnvironmentError, UserError


def test_importing_the_package_is_light() -> None:
    heavy = "{'torch', 'hydra', 'pydantic', 'numpy', 'rich', 'transformers'}"
    code = f"import sys, amnesia_bench; sys.exit(sorted({heavy} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_package_lists_its_front_doors_and_requests() -> None:
    assert {"check", "restore", "run", "CheckRequest", "RunRequest"} <= set(dir(ab))
    assert "import_module" not in dir(ab)
    with pytest.raises(AttributeError, match="no attribute 'chekc'"):
        _ = ab.chekc


def test_anything_but_the_request_is_refused() -> None:
    for wrong in ("folder", ab.DiffRequest(a="x", b="y"), None):
        with pytest.raises(TypeError, match="expected a VerifyRequest"):
            ab.verify(wrong)  # type: ignore[arg-type]


def test_an_output_folder_may_be_a_text(tmp_path: Path) -> None:
    out = tmp_path / "tokenizer"
    ab.synthesize_tokenizer(ab.SynthesizeTokenizerRequest(), str(out))  # type: ignore[arg-type]
    assert (out / "manifest.json").is_file()
    ab.synthesize_tokenizer(ab.SynthesizeTokenizerRequest(), out=str(out) + "2")  # type: ignore[arg-type]
    assert (tmp_path / "tokenizer2" / "manifest.json").is_file()


def test_without_an_extra_a_front_door_is_absent_and_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(ab.FRONT_DOORS, "train", ab.FrontDoor("no_such_module", "train"))
    assert not hasattr(ab, "train")
    with pytest.raises(MissingEnvironmentError, match="train needs packages") as caught:
        _ = ab.train
    assert caught.value.hint == 'pip install "amnesia-bench[train]"'


def test_configs_are_loaded_by_name_or_path_with_a_list_of_overrides(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: qk_blend\nrule: {alpha: 0.25}\n")
    assert ab.load_variant(path).rule.alpha == 0.25  # type: ignore[union-attr]
    with pytest.raises(TypeError, match="sequence of texts"):
        ab.load_variant("qk_blend", "restore.rule.alpha=0.25")
    with pytest.raises(TypeError, match="sequence of texts"):
        ab.load_training("sft_miromind_2b", "train.steps=20")


def test_the_shared_part_of_models_is_no_model() -> None:
    with pytest.raises(UserError, match="only the shared part of qwen3_0_6b") as caught:
        ab.load_model("qwen3")
    assert caught.value.hint == "Choose one of them."
