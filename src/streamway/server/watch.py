"""A live copy of a few collections, kept by watches that survive what happens to long connections.

A watch ends for many harmless reasons: the server's own time limit, a proxy, a restarted API server, a resource
version that has become too old (410 Gone). Each is answered by going on from the last version seen or, where that is
gone, by listing again; the reader of the copy never notices.
"""

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import urllib3

from streamway.cluster import ClusterConnection, Manifest
from streamway.errors import ApiServerError, ClusterError, ClusterPermissionError, ClusterUnreachableError

logger = logging.getLogger("streamway.server")

# The server ends a watch after this long, so that a connection that died silently is noticed soon.
_WATCH_SECONDS = 50
_READ_MARGIN_SECONDS = 10
_LONGEST_PAUSE_SECONDS = 5.0
_KEPT_LOG_LINES = 400
_LOST = (ClusterUnreachableError, ApiServerError, urllib3.exceptions.HTTPError, OSError)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A collection to be watched.

    Args:
        path: Its path at the API server.
        label_selector: Which of its objects.
        field_selector: Which of its objects.
        optional: Whether the copy is useful without it, where we may not read it.
    """

    path: str
    label_selector: str = ""
    field_selector: str = ""
    optional: bool = False

    @property
    def query(self) -> dict[str, str]:
        """Selectors as query parameters."""
        pairs = {"labelSelector": self.label_selector, "fieldSelector": self.field_selector}
        return {key: value for key, value in pairs.items() if value}


class LiveView:
    """The objects of several collections as they are now; a context manager.

    Args:
        connection: The cluster.
        sources: What to watch, by a name of the caller's choice.
    """

    def __init__(self, connection: ClusterConnection, sources: Mapping[str, Source]) -> None:
        self._connection = connection
        self._sources = dict(sources)
        self._objects: dict[str, dict[str, Manifest]] = {name: {} for name in sources}
        self._listed: set[str] = set()
        self._failure: ClusterError | None = None
        self._lost_since: float | None = None
        self._changed = threading.Condition()
        self._changes = 0
        self._readers = [_Reader(self._watch, name) for name in sources]

    def __enter__(self) -> Self:
        for reader in self._readers:
            reader.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: TracebackType | None) -> None:
        for reader in self._readers:
            reader.stop()

    def objects(self, name: str) -> list[Manifest]:
        """Objects of one collection, oldest first."""
        with self._changed:
            found = list(self._objects[name].values())
        return sorted(found, key=lambda item: str(item["metadata"].get("creationTimestamp", "")))

    def wait(self, seen: int, timeout_seconds: float) -> int:
        """Wait until something has changed since `seen`, or for so long; return the count of changes.

        Raises:
            ClusterError: a collection that is needed may not be read.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._changes != seen or self._failure, timeout=timeout_seconds)
            if self._failure is not None:
                raise self._failure
            return self._changes

    @property
    def complete(self) -> bool:
        """Whether every collection has been listed once; one that is optional need not succeed."""
        with self._changed:
            return len(self._listed) == len(self._sources)

    @property
    def silent_seconds(self) -> float:
        """How long the API server has not answered; 0 while it does."""
        since = self._lost_since
        return 0.0 if since is None else time.monotonic() - since

    def _watch(self, reader: "_Reader") -> None:
        source, version, pause = self._sources[reader.name], "", 0.2
        while not reader.stopped():
            try:
                if not version:
                    version = self._list(reader.name, source)
                for kind, item in self._events(reader, source, version):
                    version = self._take(reader.name, kind, item)
                pause = 0.2
            except _Gone:
                logger.debug("the watch of %s is too old to go on; listing again", reader.name)
                version = ""
            except ClusterPermissionError as error:
                self._give_up(reader.name, source, error)
                return
            except (*_LOST, ValueError, KeyError) as error:
                if reader.stopped():
                    return
                self._note_loss(reader.name, source, error)
                reader.pause(pause)
                pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    def _list(self, name: str, source: Source) -> str:
        # Whoever asks comes again by itself, and notices the loss.
        found = self._connection.request("GET", source.path, query=source.query, timeout_seconds=15, retry_seconds=0)
        with self._changed:
            self._objects[name] = {_key(item): item for item in found.get("items") or ()}
            self._listed.add(name)
            self._note_answer()
        return str((found.get("metadata") or {}).get("resourceVersion", "0"))

    def _events(self, reader: "_Reader", source: Source, version: str) -> Iterator[tuple[str, Manifest]]:
        query: dict[str, Any] = {
            **source.query,
            "watch": True,
            "allowWatchBookmarks": True,
            "resourceVersion": version,
            "timeoutSeconds": _WATCH_SECONDS,
        }
        try:
            with self._connection.open(
                "GET", source.path, query=query, read_timeout_seconds=_WATCH_SECONDS + _READ_MARGIN_SECONDS
            ) as response:
                reader.reads(response)
                self._note_contact()
                for line in lines_of(response):
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        raise _Gone if event["object"].get("code") == 410 else _refused(event["object"])
                    yield event["type"], event["object"]
        except ApiServerError as error:
            if error.status == 410:
                raise _Gone from error
            raise

    def _take(self, name: str, kind: str, item: Manifest) -> str:
        with self._changed:
            if kind == "DELETED":
                self._objects[name].pop(_key(item), None)
            elif kind != "BOOKMARK":
                self._objects[name][_key(item)] = item
            self._note_answer()
        return str(item["metadata"]["resourceVersion"])

    def _note_answer(self) -> None:
        self._lost_since = None
        self._changes += 1
        self._changed.notify_all()

    def _note_contact(self) -> None:
        """A watch that was answered is no silence, even where nothing happens for long."""
        with self._changed:
            self._lost_since = None

    def _note_loss(self, name: str, source: Source, error: Exception) -> None:
        with self._changed:
            if source.optional:
                # The events of a crowded namespace may be too many to be listed in time.
                self._listed.add(name)
                self._changes += 1
                self._changed.notify_all()
            if self._lost_since is None:
                self._lost_since = time.monotonic()
                logger.info("the API server is gone for the moment, still trying: %s", str(error).split("\n")[0])

    def _give_up(self, name: str, source: Source, error: ClusterError) -> None:
        with self._changed:
            self._listed.add(name)
            if source.optional:
                logger.info("going on without %s, which we may not read: %s", name, error.problem)
            else:
                self._failure = error
            self._changes += 1
            self._changed.notify_all()


class LogFollower:
    """Follows one container's log from its beginning; a context manager.

    Args:
        connection: The cluster.
        path: Path of the pod.
        container: Name of the container.
        on_line: Called with each line, and with None when the log begins anew, from another thread.
    """

    def __init__(
        self, connection: ClusterConnection, path: str, container: str, on_line: Callable[[str | None], None]
    ) -> None:
        self._connection = connection
        self._path = f"{path}/log"
        self._container = container
        self._on_line = on_line
        self._kept: deque[str] = deque(maxlen=_KEPT_LOG_LINES)
        self._reader = _Reader(self._follow, "log")

    def start(self) -> None:
        """Begin in the background."""
        self._reader.start()

    def stop(self) -> None:
        """Stop following."""
        self._reader.stop()

    def tail(self, count: int) -> list[str]:
        """Last lines so far."""
        return list(self._kept)[-count:]

    def _follow(self, reader: "_Reader") -> None:
        query = {"container": self._container, "follow": True}
        while not reader.stopped():
            try:
                with self._connection.open("GET", self._path, query=query, read_timeout_seconds=60) as response:
                    reader.reads(response)
                    self._on_line(None)
                    self._kept.clear()
                    for line in lines_of(response):
                        text = line.decode("utf-8", "replace")
                        self._kept.append(text)
                        self._on_line(text)
            except ClusterPermissionError as error:
                logger.info("going on without the log, which we may not read: %s", error.problem)
                return
            except (ClusterError, urllib3.exceptions.HTTPError, OSError) as error:
                # A container that has not started yet has no log; a quiet one lets the read time out.
                logger.debug("the log will be opened again: %s", error)
            reader.pause(1.0)


class _Reader:
    """A background thread that reads one long answer after another, and can be stopped in the middle of one."""

    def __init__(self, work: Callable[["_Reader"], None], name: str) -> None:
        self.name = name
        self._stop = threading.Event()
        self._response: urllib3.BaseHTTPResponse | None = None
        self._thread = threading.Thread(target=work, args=(self,), name=f"streamway-{name}", daemon=True)

    def stopped(self) -> bool:
        return self._stop.is_set()

    def start(self) -> None:
        self._thread.start()

    def reads(self, response: urllib3.BaseHTTPResponse) -> None:
        self._response = response
        if self.stopped():
            _shut(response)

    def pause(self, seconds: float) -> None:
        self._stop.wait(seconds)

    def stop(self) -> None:
        self._stop.set()
        if self._response is not None:
            _shut(self._response)
        if self._thread.is_alive():
            self._thread.join(timeout=2)


class _Gone(Exception):  # noqa: N818  a state of the watch, never shown to anyone
    """The version to go on from is no longer kept by the server."""


def _shut(response: urllib3.BaseHTTPResponse) -> None:
    """End a read that another thread is waiting in."""
    if isinstance(response, urllib3.HTTPResponse):
        try:
            response.shutdown()
        except (RuntimeError, ValueError, OSError) as error:
            logger.debug("the connection was closed already: %s", error)


def lines_of(response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    """Lines of a long answer as they arrive, without their ends."""
    pending = b""
    for piece in response.stream(65536):
        *lines, pending = (pending + piece).split(b"\n")
        yield from lines
    if pending:
        yield pending


def _refused(status: Manifest) -> ApiServerError:
    return ApiServerError(
        f"A watch ended with {status.get('code')}: {status.get('message')}",
        status=int(status.get("code") or 0),
        reason=str(status.get("reason", "")),
    )


def _key(item: Manifest) -> str:
    metadata = item["metadata"]
    return str(metadata.get("uid") or f"{metadata.get('namespace')}/{metadata['name']}")
