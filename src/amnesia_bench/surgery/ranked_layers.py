"""Select the top layers of a ranking, for models in which the paper restores only those."""

from __future__ import annotations

from pathlib import Path

from amnesia_bench.errors import UserError
from amnesia_bench.records import codec
from amnesia_bench.records.layer_ranking import LayerRanking
from amnesia_bench.requests.checkpoints import RankedLayers
from amnesia_bench.store.files import read_json
from amnesia_bench.store.sealed_json import unsealed


def read_ranking(path: Path) -> LayerRanking:
    """Read a ranking that `rank_layers` wrote.

    Raises:
        UserError: the file is not a ranking, or was changed after it was written.
    """
    content = unsealed(read_json(path), str(path), "Rank the layers again, to another file.")
    return codec.from_json(LayerRanking, content, str(path))


def top_layers(chosen: RankedLayers) -> tuple[int, ...]:
    """Return the top layers of a ranking, in ascending order.

    Raises:
        UserError: the file is not a ranking, or ranks fewer layers than requested.
    """
    try:
        return read_ranking(chosen.file).top(chosen.count)
    except ValueError as error:
        raise UserError(f"--layers: {chosen.file}: {error}") from error
