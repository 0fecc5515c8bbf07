"""A command inside a running container, by the API server's exec: its output as it comes, and how it ended.

A WebSocket carries numbered channels, the number being the first byte of each message: 1 stdout, 2 stderr, 3 the final
Status (https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/pod-v1/, `connect GET exec`). RBAC knows
this as the verb `get` on `pods/exec`, and as `create` too from Kubernetes 1.35 on.
"""

import json
import time
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote

import websocket

from streamway.cluster.connection import ClusterConnection, sentence
from streamway.errors import ClusterError, ClusterUnreachableError

_STDOUT, _STDERR, _STATUS = 1, 2, 3
_WORDS_BYTES = 4096
"""How much of what a command complains is kept for a message."""


def run_in_container(
    connection: ClusterConnection,
    namespace: str,
    pod: str,
    container: str,
    command: Sequence[str],
    *,
    timeout_seconds: float,
    silence_seconds: float = 30,
) -> Iterator[bytes]:
    """Run a command in a container and yield its output as it comes; a reader that stops early ends the command.

    Args:
        connection: The cluster.
        namespace: Of the pod.
        pod: Its name.
        container: One of its containers, which must run.
        command: Program and arguments; no shell is involved.
        timeout_seconds: For the whole command.
        silence_seconds: Longest time without a sign of life.

    Raises:
        ClusterError: the command failed; says how, with its last words.
        ClusterUnreachableError: the connection broke, or the time was over.
        ClusterPermissionError: RBAC refuses to exec.
    """
    path = f"/api/v1/namespaces/{quote(namespace)}/pods/{quote(pod)}/exec"
    query = [("container", container), ("stdout", "true"), ("stderr", "true")]
    query += [("command", part) for part in command]
    channel = connection.open_channel(path, query, timeout_seconds=silence_seconds)
    try:
        yield from _read(channel, f"{command[0]} in {pod}", time.monotonic() + timeout_seconds)
    finally:
        channel.close(timeout=1)


def _read(channel: Any, subject: str, deadline: float) -> Iterator[bytes]:
    words = b""
    while True:
        number, data = _receive(channel, subject)
        if number == _STDOUT and data:
            yield data
        elif number == _STDERR:
            words = (words + data)[-_WORDS_BYTES:]
        elif number == _STATUS:
            _judge(data, words, subject)
            return
        if time.monotonic() > deadline:
            raise ClusterUnreachableError(f"{subject} was still running when its time was over.")


def _receive(channel: Any, subject: str) -> tuple[int, bytes]:
    try:
        message = channel.recv()
    except (websocket.WebSocketException, OSError) as error:
        raise ClusterUnreachableError(
            f"The connection to {subject} broke off: {sentence(error)}", next_step="Run again."
        ) from error
    data = message.encode() if isinstance(message, str) else bytes(message)
    if not data:
        raise ClusterUnreachableError(
            f"The connection to {subject} ended before the command did.", next_step="Run again."
        )
    return data[0], data[1:]


def _judge(data: bytes, words: bytes, subject: str) -> None:
    try:
        status = json.loads(data)
    except ValueError:
        status = {}
    if status.get("status") == "Success":
        return
    said = words.decode("utf-8", "replace").strip()
    raise ClusterError(
        f"{subject} failed: {status.get('message') or data[:300].decode('utf-8', 'replace')}".rstrip(".")
        + (f". It said: {said}" if said else "."),
        next_step="Look at the container; its image must have the program.",
    )
