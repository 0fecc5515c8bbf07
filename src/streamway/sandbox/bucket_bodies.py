"""Long request bodies, read from their sockets by a thread, because an event loop alone cannot keep up with them.

aiohttp copies each body three times on the one thread that all connections share. That thread was what a fast client
waited for: 1.4 s of processor time for a GB. A thread that takes the rest of the body from the socket itself, into
memory that it keeps, needs half, and several of them use several processors.
"""

import asyncio
import contextlib
import os
import select
from collections.abc import AsyncIterable, Iterator, Sequence
from typing import Protocol

from aiohttp import web

from streamway.sandbox.faults import receive

LEAST_BYTES = 1 << 20
"""Shorter bodies are not worth the thread, nor the connection, which ends with a body that was taken from it."""
_BLOCK_BYTES = 1 << 20
_LOOK_MILLISECONDS = 500
_TAKEN = "body taken"


class Sink(Protocol):
    """Where a body goes."""

    def write(self, chunks: Sequence[bytes | memoryview]) -> None:
        """Append bytes."""


async def store_body(request: web.Request, sink: Sink) -> None:
    """Write a request's body to a sink; what has arrived is written also where it breaks off.

    Raises:
        ConnectionResetError: the client has gone.
    """
    if not _is_long(request):
        await write_chunks(receive(request), sink)
        return
    request[_TAKEN] = True
    transport, content = request.transport, request.content
    assert transport is not None
    sink.write([content.read_nowait()])
    transport.pause_reading()  # after reading, which may resume it
    left = (request.content_length or 0) - content.total_bytes
    with _own_descriptor(transport) as descriptor:
        taken = await asyncio.to_thread(_take, descriptor, left, sink, transport)
    content.total_bytes += taken
    if taken < left:
        raise ConnectionResetError("the client has gone")
    content.feed_eof()


async def end_taken_connection(request: web.Request, response: web.StreamResponse) -> None:
    """Close the connection after the answer where the body was taken from it: aiohttp has lost count of its bytes.

    To be appended to an application's `on_response_prepare`.
    """
    if _TAKEN in request:
        response.force_close()
        response.headers["Connection"] = "close"  # aiohttp has written its own headers before it asks


def _is_long(request: web.Request) -> bool:
    """Tell whether a body may be taken from its socket: it is long, of known length, and no fault waits for it."""
    expects = "Expect" in request.headers
    length = request.content_length or 0
    return request.get("fault") is None and request.transport is not None and not expects and length >= LEAST_BYTES


@contextlib.contextmanager
def _own_descriptor(transport: asyncio.Transport) -> Iterator[int]:
    """Lend a descriptor that stays ours when the loop closes its own."""
    descriptor = os.dup(transport.get_extra_info("socket").fileno())
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _take(descriptor: int, left: int, sink: Sink, transport: asyncio.Transport) -> int:
    """Move bytes from a socket to a sink; return how many came before its end."""
    memory, taken = memoryview(bytearray(min(left, _BLOCK_BYTES))), 0
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    filled = 0
    while taken < left and not transport.is_closing():
        if not poll.poll(_LOOK_MILLISECONDS):
            continue
        try:
            count = os.readv(descriptor, [memory[filled : filled + left - taken]])
        except BlockingIOError:
            continue
        except ConnectionError:
            break
        if not count:
            break
        filled, taken = filled + count, taken + count
        if filled == len(memory):
            sink.write([memory])
            filled = 0
    sink.write([memory[:filled]])
    return taken


async def write_chunks(chunks: AsyncIterable[bytes], sink: Sink) -> None:
    """Write a stream to a sink in blocks, and what has arrived where it breaks off."""
    block: list[bytes] = []
    waiting = 0
    try:
        async for chunk in chunks:
            block.append(chunk)
            waiting += len(chunk)
            if waiting >= _BLOCK_BYTES:
                full, block, waiting = block, [], 0
                await asyncio.to_thread(sink.write, full)
    finally:
        sink.write(block)
