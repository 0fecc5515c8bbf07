"""Bytes that can be read by offset, from disk or from Cloud Storage, bound to one version of their source."""

import os
import stat
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from streamway.errors import SourceChangedError, StorageError, TransferError
from streamway.storage.addresses import is_gs, local_path, parse_gs
from streamway.storage.cloud import CloudStorage, StoredObject, cloud_storage
from streamway.storage.http import Patience
from streamway.storage.refusals import named_refusals
from streamway.storage.scatter import Scatter
from streamway.storage.segments import ByteReader

_ROWS_AT_ONCE = 1024
"""IOV_MAX of Linux and macOS."""


class VersionedReader(ByteReader, Protocol):
    """A reader that knows which version of its source it reads, and can fill memory that is already there."""

    @property
    def version(self) -> str:
        """Whatever changes when the bytes change: a generation, an ETag, an inode with its time."""

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill `view` from `offset`; like `read` without a copy."""

    def read_rows(self, offset: int, rows: Sequence[memoryview]) -> None:
        """Fill several pieces of memory, one after the other, from one stretch of the source."""


class SummingReader(VersionedReader, Protocol):
    """A reader that computes the crc32c of what it reads for reasons of its own, so that nobody else need."""

    def sum_rows(self, offset: int, rows: Sequence[memoryview]) -> list[int]:
        """Fill memory as `read_rows` does, and return the crc32c of each piece."""


class LocalReader:
    """A file on disk, as it was when it was opened."""

    def __init__(self, path: Path) -> None:
        self.uri = str(path)
        with named_refusals(path, "read"):
            # Opening a pipe would otherwise wait for somebody to write to it.
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._descriptor)
        if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            raise StorageError(
                f"{path} is no file.", next_step="Give a file's path, or a folder where one is expected."
            )
        self._stamp = self._look()
        self.size_bytes = self._stamp[0]

    @property
    def version(self) -> str:
        return "/".join(str(number) for number in self._stamp)

    def fileno(self) -> int:
        return self._descriptor

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset`."""
        data = bytearray(length)
        self.read_into(offset, memoryview(data))
        return bytes(data)

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill `view` from `offset`."""
        filled = 0
        while filled < len(view):
            count = self._read([view[filled:]], offset + filled)
            if count == 0:
                break
            filled += count
        self.check()
        if filled < len(view):
            raise TransferError(
                f"{self.uri}: asked for {len(view)} bytes at {offset}, the file ends at {self.size_bytes}."
            )

    def read_rows(self, offset: int, rows: Sequence[memoryview]) -> None:
        """Fill several pieces of memory from one stretch of the file."""
        for first in range(0, len(rows), _ROWS_AT_ONCE):
            group = rows[first : first + _ROWS_AT_ONCE]
            filled = self._read(group, offset)
            for row in group:
                if filled < len(row):  # seldom: the call was cut short, or the file ends here
                    self.read_into(offset + max(0, filled), row[max(0, filled) :])
                filled -= len(row)
                offset += len(row)
        self.check()

    def _read(self, rows: Sequence[memoryview], offset: int) -> int:
        try:
            return os.preadv(self._descriptor, rows, offset)
        except OSError as error:
            raise TransferError(
                f"{self.uri}: the disk does not give what is at {offset}: {error.strerror}.",
                next_step="Check the disk, or the network that it is reached by, then run again.",
            ) from error

    def check(self) -> None:
        """Refuse to go on where the file was written to since it was opened."""
        if self._look() != self._stamp:
            raise SourceChangedError(
                f"{self.uri} was changed while it was read.", next_step="Let nothing write there, then run again."
            )

    def _look(self) -> tuple[int, int, int, int]:
        status = os.fstat(self._descriptor)
        return status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev


class ObjectReader:
    """One generation of an object in Cloud Storage."""

    def __init__(self, cloud: CloudStorage, stored: StoredObject) -> None:
        self._cloud = cloud
        self.stored = stored
        self.uri = str(stored.address)
        self.size_bytes = stored.size_bytes

    @property
    def version(self) -> str:
        return str(self.stored.generation)

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset`."""
        data = bytearray(length)
        self.read_into(offset, memoryview(data))
        return bytes(data)

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill `view` from `offset`."""
        self.read_rows(offset, [view])

    def read_rows(self, offset: int, rows: Sequence[memoryview]) -> None:
        """Fill several pieces of memory from one stretch of the object, in one request."""
        memory = Scatter(rows)
        if offset < 0 or offset + memory.size_bytes > self.size_bytes:
            raise TransferError(
                f"{self.uri}: asked for {memory.size_bytes} bytes at {offset}, the object ends at {self.size_bytes}."
            )
        if memory.size_bytes:
            self._cloud.read_into(self.stored, offset, memory)


def open_reader(uri: str, *, patience: Patience | None = None) -> LocalReader | ObjectReader:
    """Open a local file or an object for reading by offset, from any thread.

    Args:
        uri: A local path or gs://.
        patience: How long to wait for Cloud Storage.

    Raises:
        StorageError: there is nothing, or it may not be read.
    """
    if not is_gs(uri):
        return LocalReader(local_path(uri))
    cloud, address = cloud_storage(patience), parse_gs(uri)
    stored = cloud.stat(address)
    if stored is None:
        raise StorageError(f"{uri}: there is no such object.", next_step="Correct the address.")
    return ObjectReader(cloud, stored)
