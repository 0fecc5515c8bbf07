"""Container logs, as `kubectl logs` asks for them.

The node writes logs in the format of the container runtime interface, so that every line knows its time:
TIMESTAMP STREAM F|P TEXT, where P marks a part of a line that is not finished.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from aiohttp import web

from streamway.sandbox.cluster.api.runtime import PodRuntime
from streamway.sandbox.cluster.api.statuses import bad_request
from streamway.sandbox.cluster.objects import Object, annotations_of, dig, every_container, name_of, now, parse_time

_FOLLOW_SECONDS = 0.1
_CHUNK_BYTES = 1 << 16
_DEFAULT_CONTAINER = "kubectl.kubernetes.io/default-container"
_TRUE = ("1", "true", "True")


@dataclass(frozen=True, kw_only=True)
class LogOptions:
    """What part of a log is wanted, and how.

    Args:
        follow: Go on as long as the container runs.
        previous: The run before the current one.
        tail_lines: Only the last lines; None for all.
        since: Only lines from then on.
        timestamps: Put each line's time in front.
        limit_bytes: Stop after so many bytes; None for no limit.
    """

    follow: bool
    previous: bool
    tail_lines: int | None
    since: datetime | None
    timestamps: bool
    limit_bytes: int | None

    def shown(self, line: bytes) -> bytes:
        """Present one stored line; empty when it is not wanted."""
        stamp, _, rest = line.partition(b" ")
        _, _, rest = rest.partition(b" ")
        tag, _, text = rest.partition(b" ")
        if self.since is not None and parse_time(stamp.decode()) < self.since:
            return b""
        text = text if tag == b"F" else text.removesuffix(b"\n")
        return stamp + b" " + text if self.timestamps else text


def _read_options(request: web.Request) -> LogOptions:
    """Read the query of a log request.

    Raises:
        ApiError: 400 for a value that is none.
    """
    asked = request.query
    try:
        since = now() - timedelta(seconds=int(asked["sinceSeconds"])) if "sinceSeconds" in asked else None
        since = parse_time(asked["sinceTime"]) if "sinceTime" in asked else since
        return LogOptions(
            follow=asked.get("follow") in _TRUE,
            previous=asked.get("previous") in _TRUE,
            tail_lines=int(asked["tailLines"]) if "tailLines" in asked else None,
            since=since,
            timestamps=asked.get("timestamps") in _TRUE,
            limit_bytes=int(asked["limitBytes"]) if "limitBytes" in asked else None,
        )
    except ValueError as error:
        raise bad_request(f"PodLogOptions is invalid: {error}") from error


async def read_log(request: web.Request, pod: Object, runtime: PodRuntime) -> web.StreamResponse:
    """Answer a log request."""
    options = _read_options(request)
    container = choose_container(pod, request.query.get("container", ""))
    path = _log_file(pod, container, options, runtime)
    response = web.StreamResponse(headers={"Content-Type": "text/plain"})
    await response.prepare(request)
    left = options.limit_bytes
    try:
        async for text in _lines(path, options, lambda: runtime.is_running(pod, container)):
            await response.write(text if left is None else text[:left])
            left = None if left is None else left - len(text)
            if left is not None and left <= 0:
                break
    except ConnectionResetError:
        return response
    return response


def choose_container(pod: Object, wanted: str) -> str:
    """Find the container that is meant.

    Raises:
        ApiError: 400 when none or an unknown one is named.
    """
    names = [container["name"] for _, _, container in every_container(pod["spec"])]
    main = [container["name"] for container in pod["spec"]["containers"]]
    if wanted and wanted not in names:
        raise bad_request(f"container {wanted} is not valid for pod {name_of(pod)}")
    if wanted:
        return wanted
    preferred = annotations_of(pod).get(_DEFAULT_CONTAINER)
    if preferred in names:
        return str(preferred)
    if len(names) == 1:
        return str(main[0])
    listed = f"[{' '.join(main)}]"
    first = [name for name in names if name not in main]
    more = f" or one of the init containers: [{' '.join(first)}]" if first else ""
    raise bad_request(f"a container name must be specified for pod {name_of(pod)}, choose one of: {listed}{more}")


def _log_file(pod: Object, container: str, options: LogOptions, runtime: PodRuntime) -> Path:
    path = runtime.log_file(pod, container, previous=options.previous)
    if path is not None:
        return path
    subject = f'container "{container}" in pod "{name_of(pod)}"'
    if options.previous:
        raise bad_request(f"previous terminated {subject} not found")
    raise bad_request(f"{subject} is waiting to start: {_waiting_reason(pod, container)}")


def _waiting_reason(pod: Object, container: str) -> str:
    status = pod.get("status") or {}
    for one in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        if one.get("name") == container:
            return str(dig(one, "state", "waiting", "reason", default="ContainerCreating"))
    return "ContainerCreating"


async def _lines(path: Path, options: LogOptions, is_running: Callable[[], bool]) -> AsyncIterator[bytes]:
    with path.open("rb") as log:
        lines: Iterable[bytes] = log
        if options.tail_lines is not None:
            lines = _tail(log, options.tail_lines)
        pending = b""
        for line in lines:
            if line.endswith(b"\n"):
                yield options.shown(line)
            else:
                pending = line
        while options.follow:
            alive = is_running()
            chunk = log.read(_CHUNK_BYTES)
            if not chunk:
                if not alive:
                    return
                await asyncio.sleep(_FOLLOW_SECONDS)
                continue
            complete, pending = _split(pending + chunk)
            for line in complete:
                yield options.shown(line)


def _tail(lines: Iterable[bytes], count: int) -> Iterator[bytes]:
    """Give the last lines; the parts of an unfinished line count as one."""
    kept: deque[bytes] = deque(maxlen=count)
    parts = b""
    for line in lines:
        if line.split(b" ", 3)[2:3] == [b"P"]:
            parts += line
            continue
        kept.append(parts + line)
        parts = b""
    if parts:
        kept.append(parts)
    for joined in kept:
        yield from joined.splitlines(keepends=True)


def _split(data: bytes) -> tuple[list[bytes], bytes]:
    lines = data.splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        return lines[:-1], lines[-1]
    return lines, b""
