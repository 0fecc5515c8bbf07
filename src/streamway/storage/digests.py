"""Checksums of bytes that arrive in parts: crc32c that can be joined, SHA-256 that can be put down and taken up.

Cloud Storage speaks crc32c and the Hub SHA-256. Parts finish in any order: the crc32c of two neighbours can be
combined, SHA-256 cannot, so it follows in order. hashlib gives no way to save a hash half-way, but a pending upload
cannot be read back either, so its hash must survive the death of the process: OpenSSL's own SHA256 structure (the
library that hashlib is built on) is plain memory and can be stored.
"""

import base64
import ctypes
import ctypes.util
import functools
import hashlib
from collections.abc import Iterable
from typing import Protocol, Self

import google_crc32c

Buffer = bytes | bytearray | memoryview

_CASTAGNOLI = 0x82F63B78
_COPY_BYTES = 1024 * 1024
_STATE_BYTES = 112
"""sizeof(SHA256_CTX): eight words of hash, a 64-bit count, a 64-byte block and two integers (openssl/sha.h)."""


def crc32c(data: Buffer, start: int = 0) -> int:
    """Return the Castagnoli checksum of `data`, continuing from `start`."""
    if isinstance(data, bytes):
        return int(google_crc32c.extend(start, data))
    library = _libcrc32c()
    if library is not None and not memoryview(data).readonly:
        pointer = (ctypes.c_char * len(data)).from_buffer(data)
        return int(library.crc32c_extend(start, pointer, len(data)))
    view = memoryview(data)
    for offset in range(0, len(view), _COPY_BYTES):
        start = int(google_crc32c.extend(start, bytes(view[offset : offset + _COPY_BYTES])))
    return start


@functools.cache
def _libcrc32c() -> ctypes.CDLL | None:
    """Find the C function under google_crc32c, whose own wrapper takes nothing but bytes objects."""
    try:
        from google_crc32c import _crc32c

        library = ctypes.CDLL(_crc32c.__file__)
        library.crc32c_extend.restype = ctypes.c_uint32
        library.crc32c_extend.argtypes = [ctypes.c_uint32, ctypes.c_void_p, ctypes.c_size_t]
    except (ImportError, OSError, AttributeError):
        return None
    return library


def combine_crc32c(first: int, second: int, second_length: int) -> int:
    """Return the checksum of A+B from those of A and of B.

    Appending n zero bytes to A multiplies its checksum by x^(8n) modulo the polynomial; the checksum of B is then
    added. The multiplication is carried out on bit-reversed polynomials, as zlib's crc32_combine does it.
    """
    # Every sum begins with nothing, which stays nothing.
    return _multiply(_power_of_x(8 * second_length), first) ^ second if first else second


def join_crc32c(parts: Iterable[tuple[int, int]], start: int = 0) -> int:
    """Return the checksum of a row of (checksum, length)."""
    total = start
    for checksum, length in parts:
        total = combine_crc32c(total, checksum, length)
    return total


def _multiply(left: int, right: int) -> int:
    product = 0
    for bit in range(31, -1, -1):
        if left >> bit & 1:
            product ^= right
        right = right >> 1 ^ (_CASTAGNOLI if right & 1 else 0)
    return product


@functools.lru_cache(maxsize=256)
def _power_of_x(exponent: int) -> int:
    power, square = 1 << 31, 1 << 30
    while exponent:
        if exponent & 1:
            power = _multiply(square, power)
        square = _multiply(square, square)
        exponent >>= 1
    return power


def encode_crc32c(checksum: int) -> str:
    """Write a checksum as Cloud Storage does: base64 of four big-endian bytes."""
    return base64.b64encode(checksum.to_bytes(4, "big")).decode()


def decode_crc32c(text: str) -> int:
    """Read a checksum as Cloud Storage writes it."""
    return int.from_bytes(base64.b64decode(text), "big")


class Sha256(Protocol):
    """A SHA-256 under way."""

    def update(self, data: Buffer) -> None:
        """Add bytes."""

    def hexdigest(self) -> str:
        """Return the digest so far, in lower-case hex."""

    def state(self) -> bytes | None:
        """Return what is needed to go on later, or None where this build of OpenSSL cannot tell."""


class _PlainSha256:
    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def update(self, data: Buffer) -> None:
        self._hash.update(data)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()

    def state(self) -> bytes | None:
        return None


class _OpenSslSha256:
    def __init__(self, library: ctypes.CDLL, state: bytes | None = None) -> None:
        self._library = library
        self._context = ctypes.create_string_buffer(_STATE_BYTES)
        if state is None:
            library.SHA256_Init(self._context)
        else:
            ctypes.memmove(self._context, state, _STATE_BYTES)

    def update(self, data: Buffer) -> None:
        if isinstance(data, bytes):
            self._library.SHA256_Update(self._context, data, ctypes.c_size_t(len(data)))
        else:
            pointer = (ctypes.c_char * len(data)).from_buffer(data)
            self._library.SHA256_Update(self._context, pointer, ctypes.c_size_t(len(data)))

    def hexdigest(self) -> str:
        copy, digest = ctypes.create_string_buffer(self._context.raw), ctypes.create_string_buffer(32)
        self._library.SHA256_Final(digest, copy)
        return digest.raw.hex()

    def state(self) -> bytes | None:
        return self._context.raw[:_STATE_BYTES]


def start_sha256() -> Sha256:
    """Begin a hash whose state can be saved, where that is possible."""
    library = _openssl()
    return _OpenSslSha256(library) if library else _PlainSha256()


def resume_sha256(state: bytes) -> Sha256 | None:
    """Go on with a saved hash; None where this machine cannot or the state is not one."""
    library = _openssl()
    if library is None or len(state) != _STATE_BYTES:
        return None
    return _OpenSslSha256(library, state)


@functools.cache
def _openssl() -> ctypes.CDLL | None:
    for name in _openssl_names():
        try:
            library = ctypes.CDLL(name)
            if _keeps_its_promise(library):
                return library
        except (OSError, AttributeError):
            continue
    return None


def _openssl_names() -> list[str]:
    names = []
    try:
        import _hashlib

        names.append(str(_hashlib.__file__))  # its symbols include those of the libcrypto that it is linked to
    except (ImportError, AttributeError):
        pass
    found = ctypes.util.find_library("crypto")
    return names + ([found] if found else [])


def _keeps_its_promise(library: ctypes.CDLL) -> bool:
    """Prove on known bytes that a hash put down and taken up again ends as hashlib says."""
    library.SHA256_Update.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    text = bytes(range(256)) * 3
    first = _OpenSslSha256(library)
    first.update(text[:333])
    second = _OpenSslSha256(library, first.state())
    second.update(bytearray(text[333:]))
    return second.hexdigest() == hashlib.sha256(text).hexdigest()


class Checksums:
    """SHA-256 and crc32c of one row of bytes, fed in order."""

    def __init__(self, *, sha256: bool) -> None:
        self.crc32c = 0
        self._hash: Sha256 | None = start_sha256() if sha256 else None

    def add(self, data: Buffer, checksum: int) -> None:
        """Add the next bytes, whose crc32c is already known."""
        self.crc32c = combine_crc32c(self.crc32c, checksum, len(data))
        if self._hash:
            self._hash.update(data)

    def sha256(self) -> str | None:
        return self._hash.hexdigest() if self._hash else None

    def state(self) -> bytes | None:
        return self._hash.state() if self._hash else None

    @classmethod
    def resume(cls, state: str, checksum: int, *, sha256: bool) -> Self | None:
        """Go on from a state in hex; None where the hash cannot be taken up here."""
        checksums = cls(sha256=False)
        checksums.crc32c = checksum
        if sha256:
            checksums._hash = resume_sha256(bytes.fromhex(state))
        return checksums if bool(checksums._hash) == sha256 else None
