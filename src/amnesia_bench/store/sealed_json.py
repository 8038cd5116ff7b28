"""JSON objects that contain their own checksum, for files that no manifest covers.

A finished artifact has a manifest with the hash of every file. A file that is still being written,
or that is not part of an artifact, contains checksums instead: the last key of each object,
`crc32`, covers all other keys. CRC-32 detects every single and double bit error and every error
burst of up to 32 bits, but does not protect against deliberate changes.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any

from amnesia_bench.errors import UserError

CHECKSUM = "crc32"
_MARK = f', "{CHECKSUM}": "'
_END = '"}'
_TAIL_CHARACTERS = len(_MARK) + 8 + len(_END)


def seal(record: Mapping[str, Any]) -> str:
    """Return a JSON object with its checksum as one line of ASCII, without a line break.

    The line is ASCII because a text may contain half a surrogate pair, which UTF-8 cannot encode.
    """
    body = json.dumps(record, allow_nan=False)
    return f"{body[:-1]}{_MARK}{_crc32(body)}{_END}"


def unseal(line: str) -> Any:
    """Parse a line that `seal` wrote, and return its JSON object without the checksum.

    Raises:
        ValueError: the checksum is missing or does not match.
    """
    body = line[:-_TAIL_CHARACTERS] + "}"
    if line[-_TAIL_CHARACTERS:] != f"{_MARK}{_crc32(body)}{_END}":
        raise ValueError("its checksum is missing or does not match")
    return json.loads(body)


def sealed_text(record: Mapping[str, Any]) -> str:
    """Return a JSON object with its checksum as indented text."""
    sealed = {**record, CHECKSUM: _crc32(_canonical(record))}
    return json.dumps(sealed, indent=2, allow_nan=False) + "\n"


def is_sealed(content: Any) -> bool:
    """Return whether the parsed content of a file contains a checksum."""
    return isinstance(content, dict) and CHECKSUM in content


def unsealed(content: Any, where: str, hint: str) -> Any:
    """Check the checksum in the parsed content of a file, and return the content without it.

    Content that has no checksum is returned unchanged.

    Args:
        content: the parsed content of the file.
        where: the path of the file, for the error message.
        hint: the hint of the error for a damaged file.

    Raises:
        UserError: the checksum does not match.
    """
    if not is_sealed(content):
        return content
    record = {key: value for key, value in content.items() if key != CHECKSUM}
    if content[CHECKSUM] != _crc32(_canonical(record)):
        raise UserError(f"{where}: was changed since it was written (its checksum does not match)",
                        hint=hint)  # fmt: skip
    return record


def _canonical(record: Mapping[str, Any]) -> str:
    return json.dumps(record, sort_keys=True)


def _crc32(text: str) -> str:
    return f"{zlib.crc32(text.encode('utf-8', 'surrogatepass')):08x}"
