"""Processes inside a running container, over the channel protocol of `kubectl exec`.

A WebSocket carries numbered channels, the number being the first byte of each message: 0 stdin, 1 stdout, 2 stderr,
3 the final Status, 4 the size of a terminal. Version 5 of the protocol adds 255, which closes a channel; it is what
lets a client end stdin: https://github.com/kubernetes/enhancements/tree/master/keps/sig-api-machinery/4006-transition-spdy-to-websockets
"""

import asyncio
import json

import aiohttp
from aiohttp import web

from streamway.sandbox.cluster.api.logs import choose_container
from streamway.sandbox.cluster.api.runtime import PodRuntime
from streamway.sandbox.cluster.api.statuses import ApiError, bad_request
from streamway.sandbox.cluster.objects import Object

PROTOCOLS = ("v5.channel.k8s.io", "v4.channel.k8s.io")
_STDIN, _STDOUT, _STDERR, _ERROR, _CLOSE = 0, 1, 2, 3, 255
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
    status = await _run(socket, pod, runtime, container, command, with_stdin=query.get("stdin") in _TRUE)
    if not socket.closed:
        await socket.send_bytes(bytes([_ERROR]) + json.dumps(status).encode())
        await socket.close()
    return socket


async def _run(
    socket: web.WebSocketResponse,
    pod: Object,
    runtime: PodRuntime,
    container: str,
    command: list[str],
    *,
    with_stdin: bool,
) -> Object:
    try:
        process = await runtime.run_inside(pod, container, command, with_stdin=with_stdin)
    except (FileNotFoundError, PermissionError) as error:
        return _not_started(command[0], error)
    assert process.stdout is not None
    assert process.stderr is not None
    listening = asyncio.create_task(_listen(socket, process))
    try:
        await asyncio.gather(
            _send_stream(socket, _STDOUT, process.stdout), _send_stream(socket, _STDERR, process.stderr)
        )
        return _ended(await process.wait())
    except ConnectionResetError:
        return _ended(-1)
    finally:
        listening.cancel()
        if process.returncode is None:
            process.kill()


async def _send_stream(socket: web.WebSocketResponse, channel: int, stream: asyncio.StreamReader) -> None:
    while chunk := await stream.read(_CHUNK_BYTES):
        await socket.send_bytes(bytes([channel]) + chunk)


async def _listen(socket: web.WebSocketResponse, process: asyncio.subprocess.Process) -> None:
    """Feed stdin from the client; a client that leaves takes its process with it."""
    async for message in socket:
        data = message.data.encode() if message.type is aiohttp.WSMsgType.TEXT else message.data
        if not isinstance(data, bytes) or not data or process.stdin is None:
            continue
        if data[0] == _STDIN:
            process.stdin.write(data[1:])
            await process.stdin.drain()
        elif data[0] == _CLOSE and data[1:2] == bytes([_STDIN]):
            process.stdin.close()
    if process.returncode is None:
        process.kill()


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
