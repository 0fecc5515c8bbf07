"""Checksums as Cloud Storage uses them, and the arithmetic that gives a whole's checksum from its parts'."""

import base64
import functools
import hashlib
from collections.abc import Sequence
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


def crc32c_of_row(pieces: Sequence[tuple[int, int]]) -> int:
    """Return the checksum of pieces in a row, from (checksum, length in bytes) of each, without reading them."""
    total = 0
    for checksum, length in pieces:
        total = _multiply(_shift_by(length), total) ^ checksum
    return total


# Checksums as polynomials over GF(2), bits reversed, as in RFC 3385's Castagnoli polynomial.
_POLYNOMIAL = 0x82F63B78


def _multiply(left: int, right: int) -> int:
    product = 0
    for bit in range(31, -1, -1):
        if left >> bit & 1:
            product ^= right
        right = right >> 1 ^ (_POLYNOMIAL if right & 1 else 0)
    return product


@functools.lru_cache(maxsize=256)
def _shift_by(length_bytes: int) -> int:
    """Return x to the power of eight times the length, modulo the polynomial."""
    result = 1 << 31
    square = 1 << 23
    while length_bytes:
        if length_bytes & 1:
            result = _multiply(square, result)
        square = _multiply(square, square)
        length_bytes >>= 1
    return result
