"""The error for a config, a checkpoint or an input that this model does not accept."""

from __future__ import annotations

try:
    from amnesia_bench.errors import UserError
except ImportError:
    # A folder saved after `register_for_auto_class` contains the files of this folder, but not the
    # rest of the package.
    class UserError(Exception):  # type: ignore[no-redef]  # replaces the package's class
        def __init__(self, what: str, *, hint: str | None = None) -> None:
            super().__init__(what if hint is None else f"{what}\n{hint}")


class InvalidModelInputError(UserError, ValueError):
    """The error for invalid input; also a ValueError, which users of transformers expect."""
