"""Faults on demand, because a transfer is only as good as what it does when the other side misbehaves.

Every HTTP part of the sandbox can be told to fail in a chosen way, a chosen number of times, and says
afterwards what went over the wire. A part uses this module in three places:

    table, counters = FaultTable(), Counters()
    app = web.Application(middlewares=[fault_middleware(table, counters)])
    app.add_routes(admin_routes(table, counters))

and in its own handlers reads long uploads with `receive(request)` and answers long downloads with
`send_chunks` or `send_file`, so that faults strike, and bytes are counted, in the middle of a body. Short
answers need nothing: a handler that returns a plain `web.Response` is covered by the middleware.

    POST   /sandbox/faults    {"method": "PUT", "path": "/bucket/*", "kind": "reset", "after_bytes": 1000000}
    GET    /sandbox/faults    what is still armed
    DELETE /sandbox/faults    disarm everything
    GET    /sandbox/counters  requests and bytes by method, path and subject
    DELETE /sandbox/counters  start counting again
"""

import asyncio
import socket
import struct
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NoReturn

from aiohttp import StreamReader, web

ADMIN_PREFIX = "/sandbox/"
_TYPES: dict[str, type | tuple[type, ...]] = {
    "kind": str,
    "method": str,
    "path": str,
    "status": int,
    "after_bytes": int,
    "times": int,
    "headers": dict,
    "body": str,
    "stall_seconds": (int, float),
}
KINDS = ("status", "reset", "stall", "truncate", "corrupt", "lose_answer")
_POLL_SECONDS = 0.1
# One read of a file while a fault waits for its offset; the fast path does not read at all.
_FILE_CHUNK_BYTES = 1 << 18

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One way to fail.

    An upload that is read with `receive` meets `reset`, `stall` and `corrupt` on the way in, any other
    request on the way out; `truncate` always cuts the answer.

    Args:
        kind: `status` answers at once without doing the work; `reset` cuts the connection so that the client
            sees ECONNRESET; `stall` stops moving bytes; `truncate` ends an answer early in good order;
            `corrupt` flips the bits of one byte; `lose_answer` does the work and cuts the connection instead
            of answering.
        method: HTTP method, or `*`.
        path: fnmatch pattern of the decoded path, or of the path with its query.
        status: Answer of the kind `status`.
        after_bytes: Offset in the body at which the fault strikes.
        times: How many requests are hit.
        headers: Extra headers of the kind `status`, such as Retry-After.
        body: Text of the kind `status`.
        stall_seconds: How long the kind `stall` lasts before the connection is cut.
    """

    kind: str
    method: str = "*"
    path: str = "*"
    status: int = 503
    after_bytes: int = 0
    times: int = 1
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str = ""
    stall_seconds: float = 3600.0

    @classmethod
    def from_json(cls, value: object) -> "Fault":
        """Check what a test asked for.

        Raises:
            ValueError: an unknown key or kind, or a value of the wrong type.
        """
        if not isinstance(value, dict):
            raise ValueError(f"a fault is a JSON object, not {type(value).__name__}")
        for name, given in value.items():
            if name not in _TYPES:
                raise ValueError(f"unknown key {name!r}; known: {', '.join(_TYPES)}")
            if not isinstance(given, _TYPES[name]):
                raise ValueError(f"{name} is {given!r}, which is not of type {_TYPES[name]}")
        if value.get("kind") not in KINDS:
            raise ValueError(f"kind is {value.get('kind')!r}; known: {', '.join(KINDS)}")
        return cls(**value)

    def hits(self, method: str, path: str, query: str) -> bool:
        """Say whether a request is the one meant."""
        if self.method not in ("*", method):
            return False
        return fnmatchcase(path, self.path) or fnmatchcase(f"{path}?{query}", self.path)


class FaultTable:
    """Faults that are armed, in order; the first that fits is used up first."""

    def __init__(self) -> None:
        self._armed: list[tuple[Fault, int]] = []

    def arm(self, fault: Fault) -> None:
        """Add a fault."""
        if fault.times > 0:
            self._armed.append((fault, fault.times))

    def clear(self) -> None:
        """Disarm everything."""
        self._armed.clear()

    def take(self, method: str, path: str, query: str = "") -> Fault | None:
        """Return the fault that hits this request, and count it as used."""
        for index, (fault, left) in enumerate(self._armed):
            if fault.hits(method, path, query):
                self._armed[index : index + 1] = [(fault, left - 1)] if left > 1 else []
                return fault
        return None

    def to_json(self) -> list[dict[str, Any]]:
        """Describe what is still armed."""
        return [{**asdict(fault), "times": left} for fault, left in self._armed]


@dataclass
class Tally:
    """What one kind of request has cost."""

    count: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    statuses: dict[str, int] = field(default_factory=dict)

    def add(self, bytes_in: int, bytes_out: int, status: str) -> None:
        self.count += 1
        self.bytes_in += bytes_in
        self.bytes_out += bytes_out
        self.statuses[status] = self.statuses.get(status, 0) + 1


class Counters:
    """Requests and body bytes by method, path and subject, so that a test can prove what was moved."""

    def __init__(self) -> None:
        self._tallies: dict[tuple[str, str, str], Tally] = {}

    def add(self, method: str, path: str, subject: str, *, bytes_in: int, bytes_out: int, status: str) -> None:
        """Count one request; `status` is its number, or `cut` where the client got no whole answer."""
        self._tallies.setdefault((method, path, subject), Tally()).add(bytes_in, bytes_out, status)

    def clear(self) -> None:
        """Start again from nothing."""
        self._tallies.clear()

    def to_json(self) -> dict[str, Any]:
        """Return {"requests": [one entry for each method, path and subject], "total": {...}}."""
        total = Tally()
        for tally in self._tallies.values():
            total.count += tally.count
            total.bytes_in += tally.bytes_in
            total.bytes_out += tally.bytes_out
        requests = [
            {"method": method, "path": path, "subject": subject, **asdict(tally)}
            for (method, path, subject), tally in self._tallies.items()
        ]
        return {
            "requests": requests,
            "total": {"count": total.count, "bytes_in": total.bytes_in, "bytes_out": total.bytes_out},
        }


class AnswerCutError(Exception):
    """A fault has cut the connection; nothing is left to be answered."""


def admin_routes(table: FaultTable, counters: Counters) -> list[web.RouteDef]:
    """Return the routes by which tests arm faults and read counters."""

    async def arm(request: web.Request) -> web.Response:
        try:
            table.arm(Fault.from_json(await request.json()))
        except ValueError as error:
            return web.json_response({"error": str(error)}, status=400)
        return web.json_response({"armed": table.to_json()})

    async def show(request: web.Request) -> web.Response:
        return web.json_response({"armed": table.to_json()})

    async def disarm(request: web.Request) -> web.Response:
        table.clear()
        return web.json_response({"armed": []})

    async def count(request: web.Request) -> web.Response:
        return web.json_response(counters.to_json())

    async def recount(request: web.Request) -> web.Response:
        counters.clear()
        return web.json_response(counters.to_json())

    return [
        web.post(f"{ADMIN_PREFIX}faults", arm),
        web.get(f"{ADMIN_PREFIX}faults", show),
        web.delete(f"{ADMIN_PREFIX}faults", disarm),
        web.get(f"{ADMIN_PREFIX}counters", count),
        web.delete(f"{ADMIN_PREFIX}counters", recount),
    ]


def fault_middleware(
    table: FaultTable, counters: Counters, *, subject: Callable[[web.Request], str] = lambda request: ""
) -> Any:
    """Return the middleware that applies armed faults and counts every request outside /sandbox/.

    Args:
        subject: Names what a request is about, such as an object, for the counters.
    """

    @web.middleware
    async def strike_and_count(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path.startswith(ADMIN_PREFIX):
            return await handler(request)
        fault = table.take(request.method, request.path, request.query_string)
        request["fault"] = fault
        request["bytes_out"] = 0
        status = "cut"
        try:
            response = await _answer(request, handler, fault)
            status = str(response.status)
            return response
        except web.HTTPException as error:
            status = str(error.status)
            raise
        except AnswerCutError:
            # aiohttp finds the connection closed when it tries to write this, and ends it without a word.
            return web.Response()
        except ConnectionError:
            # The client has gone, which is its right and no error of ours.
            if request.transport is not None:
                request.transport.abort()
            return web.Response()
        finally:
            counters.add(
                request.method,
                request.path,
                subject(request),
                bytes_in=request.content.total_bytes,
                bytes_out=request["bytes_out"],
                status=status,
            )

    return strike_and_count


async def receive(request: web.Request) -> AsyncIterator[bytes]:
    """Yield a request's body as it arrives, with any fault that strikes on the way in."""
    fault = request.get("fault")
    chunks = _as_read(request.content)
    if fault is None or fault.kind not in ("reset", "stall", "corrupt"):
        async for chunk in chunks:
            yield chunk
        return
    async for chunk in _struck(request, chunks, fault):
        yield chunk


async def _as_read(content: StreamReader) -> AsyncIterator[bytes]:
    """Yield what the socket gave, piece by piece: to join pieces would cost a copy of everything."""
    async for chunk, _ in content.iter_chunks():
        if chunk:
            yield chunk


async def send_chunks(
    request: web.Request, response: web.StreamResponse, chunks: AsyncIterable[bytes]
) -> web.StreamResponse:
    """Answer with a body that is made on the way, with any fault that strikes on the way out."""
    fault = _outgoing_fault(request)
    if fault is not None and fault.kind == "lose_answer":
        cut(request)
    await response.prepare(request)
    async for chunk in chunks if fault is None else _struck(request, chunks, fault):
        await response.write(chunk)
        request["bytes_out"] += len(chunk)
    await response.write_eof()
    return response


async def send_file(
    request: web.Request, response: web.StreamResponse, path: Path, offset: int, length: int
) -> web.StreamResponse:
    """Answer with `length` bytes of a file from `offset`, by sendfile where no fault is armed."""
    response.content_length = length
    with path.open("rb") as file:
        if _outgoing_fault(request) is not None:
            return await send_chunks(request, response, _read_chunks(file, offset, length))
        await response.prepare(request)
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the client has gone")
        try:
            if length:
                await asyncio.get_running_loop().sendfile(transport, file, offset, length, fallback=True)
        finally:
            # sendfile leaves the file at the first byte that was not sent, also when it fails.
            request["bytes_out"] += max(0, file.tell() - offset)
        await response.write_eof()
    return response


def cut(request: web.Request, *, reset: bool = True) -> NoReturn:
    """End the connection under a request: by RST, or in good order after what was already written."""
    transport = request.transport
    if transport is not None:
        connection = transport.get_extra_info("socket")
        if reset and connection is not None:
            # A linger time of zero makes the kernel send RST instead of FIN.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()
        else:
            transport.close()
    raise AnswerCutError


async def _answer(request: web.Request, handler: Handler, fault: Fault | None) -> web.StreamResponse:
    if fault is not None and fault.kind == "status":
        response: web.StreamResponse = web.Response(
            status=fault.status, headers=dict(fault.headers), text=fault.body or f"armed {fault.status}"
        )
        # What a refused client still sends must not be taken for its next request.
        response.force_close()
    else:
        response = await handler(request)
    if response.prepared or not isinstance(response, web.Response):
        return response
    body = response.body if isinstance(response.body, bytes) else b""
    if request.method == "HEAD":
        body = b""
    if fault is None or fault.kind == "status":
        request["bytes_out"] = len(body)
        return response
    return await _answer_struck(request, response, body)


async def _answer_struck(request: web.Request, response: web.Response, body: bytes) -> web.StreamResponse:
    streamed = web.StreamResponse(status=response.status, headers=response.headers)
    streamed.content_length = len(body)

    async def chunks() -> AsyncIterator[bytes]:
        yield body

    return await send_chunks(request, streamed, chunks())


def _outgoing_fault(request: web.Request) -> Fault | None:
    return None if request.get("struck") else request.get("fault")


async def _struck(request: web.Request, chunks: AsyncIterable[bytes], fault: Fault) -> AsyncIterator[bytes]:
    """Pass chunks through until the fault's offset is reached."""
    seen = 0
    async for chunk in chunks:
        end = seen + len(chunk)
        if request.get("struck") or end <= fault.after_bytes:
            yield chunk
        else:
            at = fault.after_bytes - seen
            request["struck"] = True
            if fault.kind == "corrupt":
                yield chunk[:at] + bytes([chunk[at] ^ 0xFF]) + chunk[at + 1 :]
            else:
                if at:
                    yield chunk[:at]
                await _break_off(request, fault)
        seen = end
    if not request.get("struck") and fault.kind != "corrupt":
        # A body shorter than the offset is no way out: the fault strikes at its end.
        await _break_off(request, fault)


async def _break_off(request: web.Request, fault: Fault) -> None:
    if fault.kind == "stall":
        await _wait_for_client_to_go(request, fault.stall_seconds)
    cut(request, reset=fault.kind != "truncate")


async def _wait_for_client_to_go(request: web.Request, seconds: float) -> None:
    deadline = asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < deadline:
        if request.transport is None or request.transport.is_closing():
            return
        await asyncio.sleep(_POLL_SECONDS)


async def _read_chunks(file: Any, offset: int, length: int) -> AsyncIterator[bytes]:
    file.seek(offset)
    while length > 0:
        chunk = file.read(min(length, _FILE_CHUNK_BYTES))
        if not chunk:
            return
        length -= len(chunk)
        yield chunk
