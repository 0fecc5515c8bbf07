"""Checksums as Cloud Storage uses and words them."""

import base64
import hashlib
from typing import Any


def new_md5() -> Any:
    """Return an md5 for integrity, not for security."""
    return hashlib.md5(usedforsecurity=False)


def encode_crc32c(value: int) -> str:
    """Return a checksum as the API words it: base64 of four bytes, most significant first."""
    return base64.b64encode(value.to_bytes(4, "big")).decode()


def decode_crc32c(text: str) -> int:
    """Read a checksum as the API words it.

    Raises:
        ValueError: it is not base64 of four bytes.
    """
    raw = base64.b64decode(text, validate=True)
    if len(raw) != 4:
        raise ValueError(f"{text!r} is not a crc32c")
    return int.from_bytes(raw, "big")
