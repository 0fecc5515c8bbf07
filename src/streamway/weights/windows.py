"""Reading out of a ByteReader: in sequence, because pickles are streams, and into memory that is already there.

A window keeps memory flat: whatever a file claims about its own lengths, no more than one window and one claimed,
checked value are in memory.
"""

from collections.abc import Callable

from streamway.errors import CheckpointError
from streamway.storage.segments import ByteReader

WINDOW_BYTES = 256 * 1024


class ByteWindow:
    """A cursor over `[start, end)` of a reader.

    Args:
        reader: Where the bytes are.
        start: First offset.
        end: First offset that is not to be read.
        subject: What is being read, for messages, such as `pytorch_model.bin (data.pkl)`.
    """

    def __init__(self, reader: ByteReader, start: int, end: int, *, subject: str) -> None:
        self._reader = reader
        self._end = end
        self._subject = subject
        self._buffer = b""
        self._buffer_start = start
        self._position = 0

    @property
    def offset(self) -> int:
        """Offset of the next byte in the reader."""
        return self._buffer_start + self._position

    @property
    def remaining(self) -> int:
        """Bytes up to the end."""
        return self._end - self.offset

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes.

        Raises:
            CheckpointError: fewer are left.
        """
        stop = self._position + count
        if stop > len(self._buffer):
            self._fill(count)
            stop = count
        taken = self._buffer[self._position : stop]
        self._position = stop
        return taken

    def take_line(self, limit: int) -> bytes:
        """Return the bytes up to the next newline, and step over it.

        Raises:
            CheckpointError: no newline comes within `limit` bytes.
        """
        within = min(limit + 1, self.remaining)
        if self._position + within > len(self._buffer):
            self._fill(within)
        found = self._buffer.find(b"\n", self._position, self._position + within)
        if found < 0:
            raise CheckpointError(
                f"{self._subject} has a line of more than {min(limit, within)} bytes at offset {self.offset}, "
                "where a pickle has a short one.",
                next_step="Download the file again; if it is the same, ask its author for another format.",
            )
        line = self._buffer[self._position : found]
        self._position = found + 1
        return line

    def _fill(self, count: int) -> None:
        if count > self.remaining:
            raise CheckpointError(
                f"{self._subject} ends too early: {count:,} bytes are announced at offset {self.offset:,}, "
                f"and {max(0, self.remaining):,} are left.",
                next_step="Download the file again: it is cut off or was changed.",
            )
        start = self.offset
        length = min(max(count, WINDOW_BYTES), self._end - start)
        self._buffer = self._reader.read(start, length)
        self._buffer_start, self._position = start, 0


def read_into(reader: ByteReader, offset: int, view: memoryview) -> None:
    """Fill memory from a reader, without a copy where it can."""
    fill: Callable[[int, memoryview], None] | None = getattr(reader, "read_into", None)
    if fill:
        fill(offset, view)
    else:
        view[:] = reader.read(offset, len(view))
