"""Lines of JSON that carry a checksum, so that half-done work can be trusted when it is resumed.

A finished artifact has a manifest with the hash of every file. A file that still grows cannot have
that: each of its lines ends in the checksum of the text before it. CRC-32 finds every single and
double bit error and every burst of up to 32 bits; it is no protection against a forger.
"""

from __future__ import annotations

import json
import zlib
from typing import Any

_MARK = ', "crc32": "'
_END = '"}'
_TAIL_CHARACTERS = len(_MARK) + 8 + len(_END)


def seal(record: dict[str, Any]) -> str:
    """Return a JSON object as one line of ASCII, with `crc32` as its last key and no line break.

    ASCII: a text may hold half a surrogate pair, which UTF-8 has no bytes for.
    """
    body = json.dumps(record, allow_nan=False)
    return f"{body[:-1]}{_MARK}{_checksum(body)}{_END}"


def unseal(line: str) -> Any:
    """Return the JSON object of a line that `seal` wrote.

    Raises:
        ValueError: the line has no checksum, or is not what was sealed.
    """
    body = line[:-_TAIL_CHARACTERS] + "}"
    if line[-_TAIL_CHARACTERS:] != f"{_MARK}{_checksum(body)}{_END}":
        raise ValueError("its checksum is missing or does not fit")
    return json.loads(body)


def _checksum(body: str) -> str:
    return f"{zlib.crc32(body.encode('utf-8', 'surrogatepass')):08x}"
