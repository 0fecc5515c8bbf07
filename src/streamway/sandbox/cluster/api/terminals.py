"""Pseudo-terminals for `kubectl exec -it`: a process believes that a person types."""

import asyncio
import errno
import fcntl
import json
import os
import struct
import termios
from contextlib import suppress


class Terminal:
    """A pseudo-terminal, of which this process holds the outer side.

    Attributes:
        inner: The descriptor for the process; to be closed here once it runs.
    """

    def __init__(self) -> None:
        self._outer, self.inner = os.openpty()
        os.set_blocking(self._outer, False)
        self._writer: asyncio.WriteTransport | None = None
        self._reader: asyncio.BaseTransport | None = None
        self._stream = asyncio.StreamReader()

    async def open(self) -> None:
        """Begin to read and write; the inner side belongs to the process alone from now on."""
        os.close(self.inner)
        loop = asyncio.get_running_loop()
        outer = os.fdopen(os.dup(self._outer), "wb", 0)
        self._writer, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, outer)
        reading = asyncio.StreamReaderProtocol(self._stream)
        self._reader, _ = await loop.connect_read_pipe(lambda: reading, os.fdopen(self._outer, "rb", 0))

    async def read(self, size: int) -> bytes:
        """Read what the process wrote; nothing at the end."""
        try:
            return await self._stream.read(size)
        except OSError as error:
            # What Linux says when the last process has closed the inner side.
            if error.errno != errno.EIO:
                raise
            return b""

    def write(self, data: bytes) -> None:
        """Type."""
        if self._writer is not None:
            self._writer.write(data)

    def resize(self, message: bytes) -> None:
        """Take a client's {"Width": columns, "Height": rows}."""
        with suppress(ValueError, KeyError, OSError):
            size = json.loads(message)
            fcntl.ioctl(self._outer, termios.TIOCSWINSZ, struct.pack("HHHH", size["Height"], size["Width"], 0, 0))

    def close(self) -> None:
        """Hang up."""
        for transport in (self._writer, self._reader):
            if transport is not None:
                transport.close()
