"""Requests for data: prepare training data, generate rows, train a tokenizer."""

from __future__ import annotations

from typing import ClassVar

from pydantic import NonNegativeInt

from amnesia_bench.config.data_schema import DataConfig, SyntheticSource
from amnesia_bench.requests.base import Location, StageRequest


class PrepareRequest(StageRequest):
    """`prepare`: tokenize a data source and pack it into sequences.

    Attributes:
        config: the source, and how its rows become sequences; `load_data("miromind")`.
        tokenizer: folder of the checkpoint to train, or of its tokenizer.
        inputs: files or folders (Parquet, JSON lines, a JSON array) with the dataset's fields, read
            instead of the config's source; `config.sample_rows` is the share of their rows to use.
    """

    front_door: ClassVar[str] = "prepare"
    config: DataConfig
    tokenizer: Location
    inputs: tuple[Location, ...] = ()


class SynthesizeRowsRequest(StageRequest):
    """`synthesize_rows`: generate the rows of a synthetic source."""

    front_door: ClassVar[str] = "synthesize_rows"
    source: SyntheticSource


class SynthesizeTokenizerRequest(StageRequest):
    """`synthesize_tokenizer`: train the tokenizer for generated texts."""

    front_door: ClassVar[str] = "synthesize_tokenizer"
    seed: NonNegativeInt = 0
