"""Processes inside a running container, over the channel protocol of `kubectl exec`.

A WebSocket carries numbered channels, the number being the first byte of each message: 0 stdin, 1 stdout, 2 stderr,
3 the final Status, 4 the size of a terminal. Version 5 of the protocol adds 255, which closes a channel; it is what
lets a client end stdin: https://github.com/kubernetes/enhancements/tree/master/keps/sig-api-machinery/4006-transition-spdy-to-websockets
"""

import asyncio
import json
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress

import aiohttp
from aiohttp import web

from streamway.sandbox.cluster.api.logs import choose_container
from streamway.sandbox.cluster.api.runtime import PodRuntime
from streamway.sandbox.cluster.api.statuses import ApiError, bad_request
from streamway.sandbox.cluster.api.terminals import Terminal
from streamway.sandbox.cluster.objects import Object

PROTOCOLS = ("v5.channel.k8s.io", "v4.channel.k8s.io")
_STDIN, _STDOUT, _STDERR, _ERROR, _RESIZE, _CLOSE = 0, 1, 2, 3, 4, 255
_CHUNK_BYTES = 1 << 16
_TRUE = ("1", "true", "True")


async def execute(request: web.Request, pod: Object, runtime: PodRuntime) -> web.StreamResponse:
    """Answer an exec request.

    Raises:
        ApiError: 400 for what is no exec request, 500 when the container does not run.
    """
    query = request.query
    container = choose_container(pod, query.get("container", ""))
    command = query.getall("command", [])
    if not command:
        raise bad_request("you must specify at least 1 container and a command")
    if request.headers.get("Upgrade", "").lower() != "websocket":
        raise bad_request("you must specify at least 1 of stdin, stdout, stderr: Upgrade request required")
    if not runtime.is_running(pod, container):
        text = f'Internal error occurred: unable to upgrade connection: container not found ("{container}")'
        raise ApiError(500, "InternalError", text)
    socket = web.WebSocketResponse(protocols=PROTOCOLS, max_msg_size=0, compress=False)
    await socket.prepare(request)
    session = _Session(socket, query.get("stdin") in _TRUE, Terminal() if query.get("tty") in _TRUE else None)
    status = await session.run(runtime, pod, container, command)
    if not socket.closed:
        await socket.send_bytes(bytes([_ERROR]) + json.dumps(status).encode())
        await socket.close()
    return socket


class _Session:
    """One process and its client.

    Args:
        socket: The client.
        with_stdin: Whether the client sends input.
        terminal: The terminal of the process, None for pipes.
    """

    def __init__(self, socket: web.WebSocketResponse, with_stdin: bool, terminal: Terminal | None) -> None:
        self._socket = socket
        self._with_stdin = with_stdin
        self._terminal = terminal

    async def run(self, runtime: PodRuntime, pod: Object, container: str, command: list[str]) -> Object:
        """Run a command to its end; gives the Status that the client is told."""
        inner = self._terminal.inner if self._terminal else None
        try:
            process = await runtime.run_inside(pod, container, command, with_stdin=self._with_stdin, terminal=inner)
        except (FileNotFoundError, PermissionError) as error:
            return _not_started(command[0], error)
        if self._terminal is not None:
            await self._terminal.open()
        listening = asyncio.create_task(self._listen(process))
        try:
            await self._send_output(process)
            return _ended(await process.wait())
        except ConnectionResetError:
            return _ended(-1)
        finally:
            listening.cancel()
            _end_session(process)
            if self._terminal is not None:
                self._terminal.close()

    async def _send_output(self, process: asyncio.subprocess.Process) -> None:
        if self._terminal is not None:
            await self._send_stream(_STDOUT, self._terminal.read)
            return
        assert process.stdout is not None
        assert process.stderr is not None
        await asyncio.gather(
            self._send_stream(_STDOUT, process.stdout.read), self._send_stream(_STDERR, process.stderr.read)
        )

    async def _send_stream(self, channel: int, read: Callable[[int], Awaitable[bytes]]) -> None:
        while chunk := await read(_CHUNK_BYTES):
            await self._socket.send_bytes(bytes([channel]) + chunk)

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        """Feed the process from the client; a client that leaves takes its process with it."""
        async for message in self._socket:
            data = message.data.encode() if message.type is aiohttp.WSMsgType.TEXT else message.data
            if isinstance(data, bytes) and data:
                await self._take(process, data[0], data[1:])
        _end_session(process)

    async def _take(self, process: asyncio.subprocess.Process, channel: int, data: bytes) -> None:
        if self._terminal is not None:
            if channel == _STDIN:
                self._terminal.write(data)
            elif channel == _RESIZE:
                self._terminal.resize(data)
        elif process.stdin is not None and channel == _STDIN:
            process.stdin.write(data)
            await process.stdin.drain()
        elif process.stdin is not None and channel == _CLOSE and data[:1] == bytes([_STDIN]):
            process.stdin.close()


def _end_session(process: asyncio.subprocess.Process) -> None:
    """End a process, which leads a session of its own, and what it started there."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _ended(code: int) -> Object:
    if code == 0:
        return {"metadata": {}, "status": "Success"}
    shown = code if code > 0 else 128 - code
    return {
        "metadata": {},
        "status": "Failure",
        "message": f"command terminated with non-zero exit code: exit status {shown}",
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": str(shown)}]},
    }


def _not_started(program: str, error: OSError) -> Object:
    why = "executable file not found in $PATH" if isinstance(error, FileNotFoundError) else "permission denied"
    text = (
        "Internal error occurred: error executing command in container: failed to exec in container: failed to start"
        f' exec: OCI runtime exec failed: exec failed: unable to start container process: exec: "{program}": {why}:'
        " unknown"
    )
    return {"metadata": {}, "status": "Failure", "message": text, "reason": "InternalError", "code": 500}
