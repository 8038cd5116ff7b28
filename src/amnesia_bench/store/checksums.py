"""SHA256SUMS: the hashes of result files in the same folder, in the format of `sha256sum`.

It covers results that are not in an artifact with a manifest. Their reader checks them, and so can
the user: `sha256sum -c SHA256SUMS`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from amnesia_bench.errors import UserError
from amnesia_bench.store.files import replace_text
from amnesia_bench.store.hashing import sha256_of

CHECKSUMS = "SHA256SUMS"


def write_checksums(folder: Path, names: Iterable[str]) -> None:
    """Write the hashes of these files of a folder, all of which must be complete."""
    lines = (f"{sha256_of(folder / name)}  {name}\n" for name in sorted(names))
    replace_text(folder / CHECKSUMS, "".join(lines))


def check_checksum(path: Path, hint: str) -> None:
    """Compare a file with its hash in SHA256SUMS. A folder without SHA256SUMS passes.

    Raises:
        UserError: the file was changed or is not listed; `hint` is the hint of the error.
    """
    sums = path.with_name(CHECKSUMS)
    if not sums.is_file():
        return
    listed = sums.read_text(encoding="utf-8", errors="replace").split("\n")
    if f"{sha256_of(path)}  {path.name}" not in listed:
        raise UserError(f"{path}: was changed since it was written (see {sums})", hint=hint)
