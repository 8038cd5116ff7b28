"""The hashes of result files, beside them, in the format of `sha256sum`.

Results that are not part of an artifact with a manifest can be checked by what reads them, and by
anyone: `sha256sum -c SHA256SUMS`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from amnesia_bench.errors import UserError
from amnesia_bench.store.files import replace_text
from amnesia_bench.store.hashing import sha256_of

CHECKSUMS = "SHA256SUMS"


def write_checksums(folder: Path, names: Iterable[str]) -> None:
    """Write the hashes of files of a folder, when all of them are written."""
    lines = (f"{sha256_of(folder / name)}  {name}\n" for name in sorted(names))
    replace_text(folder / CHECKSUMS, "".join(lines))


def check_checksum(path: Path, hint: str) -> None:
    """Compare a file with the hash beside it. A folder without hashes passes.

    Raises:
        UserError: the file is not what was written, or is not listed; `hint` says what to do.
    """
    sums = path.with_name(CHECKSUMS)
    if not sums.is_file():
        return
    listed = sums.read_text(encoding="utf-8", errors="replace").split("\n")
    if f"{sha256_of(path)}  {path.name}" not in listed:
        raise UserError(f"{path}: was changed since it was written (see {sums})", hint=hint)
