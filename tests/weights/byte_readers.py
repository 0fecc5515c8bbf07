"""Readers over bytes in memory, for tests that need no file."""

from streamway.errors import TransferError


class BytesReader:
    """A ByteReader over bytes, which counts what it gave."""

    def __init__(self, data: bytes, uri: str = "memory.bin") -> None:
        self.uri = uri
        self.size_bytes = len(data)
        self.given_bytes = 0
        self.reads = 0
        self._data = data

    def read(self, offset: int, length: int) -> bytes:
        if offset < 0 or offset + length > len(self._data):
            raise TransferError(f"{self.uri}: asked for {length} bytes at {offset} of {len(self._data)}.")
        self.given_bytes += length
        self.reads += 1
        return self._data[offset : offset + length]
