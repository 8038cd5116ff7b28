"""Select the top layers of a ranking; in some models the paper restores only those layers."""

from __future__ import annotations

from pathlib import Path

from amnesia_bench.errors import UserError
from amnesia_bench.records import codec
from amnesia_bench.records.layer_ranking import LayerRanking
from amnesia_bench.requests.checkpoints import RankedLayers
from amnesia_bench.store.files import read_json
from amnesia_bench.store.sealed_json import unsealed


def read_ranking(path: Path) -> LayerRanking:
    """Return the layer ranking in a file that `rank_layers` wrote.

    Raises:
        UserError: the file is not a ranking, or it was changed after `rank_layers` wrote it.
    """
    content = unsealed(read_json(path), str(path), "Rank the layers again, to another file.")
    return codec.from_json(LayerRanking, content, str(path))


def top_layers(chosen: RankedLayers) -> tuple[int, ...]:
    """Return the `chosen.count` top layers of a ranking, in ascending order.

    Raises:
        UserError: the file is not an intact ranking, or it has fewer layers than requested.
    """
    try:
        return read_ranking(chosen.file).top(chosen.count)
    except ValueError as error:
        raise UserError(f"--layers: {chosen.file}: {error}") from error
