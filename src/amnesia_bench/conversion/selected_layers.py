"""Read the layers that stay softmax attention from a file of `select_layers`."""

from __future__ import annotations

from pathlib import Path

from amnesia_bench.errors import UserError
from amnesia_bench.records import codec
from amnesia_bench.records.layer_selection import LayerSelection
from amnesia_bench.store.files import read_json
from amnesia_bench.store.sealed_json import is_sealed, unsealed


def read_selection(path: Path) -> LayerSelection:
    """Return the selection in a file that `select_layers` wrote.

    Raises:
        UserError: the file is not a selection, or it was changed after `select_layers` wrote it.
    """
    content = read_json(path)
    if not is_sealed(content):
        raise UserError(
            f"{path}: was not written by `amnesia select-layers`",
            hint="amnesia select-layers SCORES --count N --out FILE",
        )
    again = "Select the layers again, to another file."
    return codec.from_json(LayerSelection, unsealed(content, str(path), again), str(path))
