"""The error for a config, a checkpoint or an input that this model cannot take."""

from __future__ import annotations

try:
    from amnesia_bench.errors import UserError
except ImportError:
    # A folder saved after `register_for_auto_class` carries these files without the package.
    class UserError(Exception):  # type: ignore[no-redef]  # stands in for the package's own
        def __init__(self, what: str, *, hint: str | None = None) -> None:
            super().__init__(what if hint is None else f"{what}\n{hint}")


class InvalidModelInputError(UserError, ValueError):
    """A user's mistake; a ValueError too, since that is what callers of transformers catch."""
