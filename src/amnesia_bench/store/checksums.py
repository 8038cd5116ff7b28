"""Write and check SHA256SUMS, the hashes of result files in one folder in `sha256sum` format.

The file covers results that are not in an artifact with a manifest. The code that reads such a
result checks its hash; a user can check all hashes with `sha256sum -c SHA256SUMS`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from amnesia_bench.errors import UserError
from amnesia_bench.store.files import replace_text
from amnesia_bench.store.hashing import sha256_of

CHECKSUMS = "SHA256SUMS"


def write_checksums(folder: Path, names: Iterable[str]) -> None:
    """Write SHA256SUMS with the hashes of these files of a folder, which must be complete."""
    lines = (f"{sha256_of(folder / name)}  {name}\n" for name in sorted(names))
    replace_text(folder / CHECKSUMS, "".join(lines))


def check_checksum(path: Path, hint: str) -> None:
    """Compare a file with its hash in SHA256SUMS, if its folder contains one.

    Raises:
        UserError: the file was changed or is not listed; `hint` becomes the hint of the error.
    """
    sums = path.with_name(CHECKSUMS)
    if not sums.is_file():
        return
    listed = sums.read_text(encoding="utf-8", errors="replace").split("\n")
    if f"{sha256_of(path)}  {path.name}" not in listed:
        raise UserError(f"{path}: was changed since it was written (see {sums})", hint=hint)
