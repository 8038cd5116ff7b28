"""Requests for data: prepare training data, generate rows, train a tokenizer."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, NonNegativeInt

from amnesia_bench.config.cache_key import NEUTRAL
from amnesia_bench.config.data_schema import DataConfig, SyntheticSource
from amnesia_bench.requests.base import Location, StageRequest


class PrepareRequest(StageRequest):
    """`prepare`: tokenize a data source and pack it into sequences.

    Attributes:
        config: the data source, and how its rows are converted to sequences; for example
            `load_data("miromind")`.
        tokenizer: folder of the checkpoint to train, or of its tokenizer.
        inputs: files or folders (Parquet, JSON lines or a JSON array) that replace the config's
            source and have the same fields; `config.sample_rows` is the share of rows to use.
    """

    front_door: ClassVar[str] = "prepare"
    config: DataConfig
    tokenizer: Location
    inputs: tuple[Location, ...] = ()


class SynthesizeRowsRequest(StageRequest):
    """`synthesize_rows`: generate the rows of a synthetic source."""

    front_door: ClassVar[str] = "synthesize_rows"
    source: SyntheticSource


class ImportRowsRequest(StageRequest):
    """`import_rows`: copy a file of rows or texts into a folder with a manifest.

    `file` is the file, and `sha256` the expected hash of its contents in hex; None accepts any
    contents. A stage is addressed by the contents, wherever the file is.
    """

    front_door: ClassVar[str] = "import_rows"
    file: Annotated[Location, NEUTRAL]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None

    @property
    def copy_name(self) -> str:
        """The name of the copy: rows, with the suffix of the file, which tells its format."""
        return f"rows{self.file.suffix}"


class SynthesizeTokenizerRequest(StageRequest):
    """`synthesize_tokenizer`: train a tokenizer on generated texts."""

    front_door: ClassVar[str] = "synthesize_tokenizer"
    seed: NonNegativeInt = 0
