"""JSON with its own checksum, for files that are not covered by a manifest.

A finished artifact has a manifest with the hash of every file. A file that still grows, or that is
not in an artifact, has a checksum instead: its last key `crc32` covers all the others. CRC-32
detects every single and double bit error and every burst of up to 32 bits; it does not protect
against deliberate changes.
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
    """Return a JSON object as one line of ASCII, with its checksum and without a line break.

    ASCII, because a text may contain half a surrogate pair, which UTF-8 cannot encode.
    """
    body = json.dumps(record, allow_nan=False)
    return f"{body[:-1]}{_MARK}{_crc32(body)}{_END}"


def unseal(line: str) -> Any:
    """Return the JSON object of a line that `seal` wrote.

    Raises:
        ValueError: the checksum is missing or does not match.
    """
    body = line[:-_TAIL_CHARACTERS] + "}"
    if line[-_TAIL_CHARACTERS:] != f"{_MARK}{_crc32(body)}{_END}":
        raise ValueError("its checksum is missing or does not match")
    return json.loads(body)


def sealed_text(record: Mapping[str, Any]) -> str:
    """Return a JSON object as indented text, with its checksum."""
    sealed = {**record, CHECKSUM: _crc32(_canonical(record))}
    return json.dumps(sealed, indent=2, allow_nan=False) + "\n"


def is_sealed(content: Any) -> bool:
    """Return whether a parsed file has a checksum."""
    return isinstance(content, dict) and CHECKSUM in content


def unsealed(content: Any, where: str, hint: str) -> Any:
    """Check the checksum of a parsed file and return the rest; without one, return it unchanged.

    Args:
        content: the parsed content of the file.
        where: the file, for the message.
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
