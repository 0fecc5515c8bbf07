"""Watches: a stream of every change from a known revision on, as informers and `kubectl wait` need it."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field

from aiohttp import web

from streamway.sandbox.cluster.api.kinds import Kind
from streamway.sandbox.cluster.api.presentation import Form
from streamway.sandbox.cluster.api.statuses import ApiError, expired
from streamway.sandbox.cluster.api.store import Change, Store
from streamway.sandbox.cluster.objects import Object, namespace_of

BOOKMARK_SECONDS = 30.0
_INITIAL_EVENTS_END = "k8s.io/initial-events-end"


@dataclass(frozen=True, kw_only=True)
class WatchRequest:
    """What a client wants to see.

    Args:
        kind: The kind.
        namespace: The namespace, empty for all.
        matches: Whether an object is selected.
        revision: After which revision, None for what there is now and all that follows.
        bookmarks: Whether the client takes bookmarks.
        initial_events: Whether a bookmark shall mark the end of what there was at the beginning.
        timeout_seconds: When the stream ends.
        form: How objects are presented.
        present: Converts a stored object to the served version.
    """

    kind: Kind
    namespace: str
    matches: Callable[[Object], bool]
    revision: int | None
    bookmarks: bool
    initial_events: bool
    timeout_seconds: float
    form: Form
    present: Callable[[Object], Object] = field(default=lambda item: item)

    def concerns(self, change: Change, stored_kind: Kind) -> bool:
        """Tell whether a change is in the place that is watched."""
        return change.kind is stored_kind and self.namespace in ("", namespace_of(change.item))

    def event(self, change: Change) -> tuple[str, Object] | None:
        """Turn a change into what the watcher sees of it; a selector makes objects come and go."""
        is_in = self.matches(change.item)
        was_in = change.previous is not None and self.matches(change.previous)
        if change.type == "DELETED":
            return ("DELETED", change.item) if was_in or is_in else None
        if is_in:
            return ("MODIFIED" if was_in else "ADDED", change.item)
        return ("DELETED", change.item) if was_in else None


class Watches:
    """All open watches.

    Args:
        store: What is watched.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._queues: set[asyncio.Queue[Change | ApiError | None]] = set()

    def end_all(self, error: ApiError | None = None) -> int:
        """End every open watch, with an error event or by just closing the connection; tells how many."""
        for queue in self._queues:
            queue.put_nowait(error)
        return len(self._queues)

    def forget_history(self) -> None:
        """Forget past changes, so that every watch from an older revision is told 410."""
        self._store.forget_history()

    async def serve(self, request: web.Request, wanted: WatchRequest, stored_kind: Kind) -> web.StreamResponse:
        """Answer a watch until the client leaves, the time is over or the watch is ended."""
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        queue: asyncio.Queue[Change | ApiError | None] = asyncio.Queue()
        stop = self._store.listen(queue.put_nowait)
        self._queues.add(queue)
        try:
            if not await _Stream(response, wanted, stored_kind, self._store).run(queue):
                _hang_up(request)
        except ConnectionResetError:
            return response
        finally:
            stop()
            self._queues.discard(queue)
        return response


def _hang_up(request: web.Request) -> None:
    """Break a connection without ending its answer properly, as a network does."""
    if request.transport is not None:
        request.transport.abort()


class _Stream:
    def __init__(self, response: web.StreamResponse, wanted: WatchRequest, stored_kind: Kind, store: Store) -> None:
        self._response = response
        self._wanted = wanted
        self._stored_kind = stored_kind
        self._store = store

    async def run(self, queue: "asyncio.Queue[Change | ApiError | None]") -> bool:
        """Send until the time is over; tells whether the answer ends properly."""
        if not await self._send_past():
            return True
        loop = asyncio.get_running_loop()
        end = loop.time() + self._wanted.timeout_seconds
        bookmark_at = loop.time() + BOOKMARK_SECONDS
        while (left := end - loop.time()) > 0:
            try:
                change = await asyncio.wait_for(queue.get(), min(left, max(0.01, bookmark_at - loop.time())))
            except TimeoutError:
                bookmark_at = loop.time() + BOOKMARK_SECONDS
                await self._send_bookmark({}, self._store.revision)
                continue
            if change is None:
                return False
            if isinstance(change, ApiError):
                await self._send("ERROR", change.status())
                return True
            await self._send_change(change)
        return True

    async def _send_past(self) -> bool:
        wanted = self._wanted
        if wanted.revision is None:
            return await self._send_everything()
        changes = self._store.changes_since(self._stored_kind, wanted.revision)
        if changes is None:
            text = f"too old resource version: {wanted.revision} ({self._store.revision})"
            await self._send("ERROR", expired(text).status())
            return False
        for change in changes:
            await self._send_change(change)
        return True

    async def _send_everything(self) -> bool:
        wanted, revision = self._wanted, self._store.revision
        for item in self._store.items(self._stored_kind, wanted.namespace or None):
            if wanted.matches(item):
                await self._send_object("ADDED", item)
        if wanted.initial_events:
            await self._send_bookmark({_INITIAL_EVENTS_END: "true"}, revision)
        return True

    async def _send_change(self, change: Change) -> None:
        if self._wanted.concerns(change, self._stored_kind):
            event = self._wanted.event(change)
            if event is not None:
                await self._send_object(*event)

    async def _send_object(self, type_: str, item: Object) -> None:
        wanted = self._wanted
        await self._send(type_, wanted.form.one(wanted.kind, wanted.present(item)))

    async def _send_bookmark(self, annotations: dict[str, str], revision: int) -> None:
        if not self._wanted.bookmarks:
            return
        kind = self._wanted.kind
        metadata: Object = {"resourceVersion": str(revision), "creationTimestamp": None}
        if annotations:
            metadata["annotations"] = annotations
        item = {"kind": kind.name, "apiVersion": kind.api_version, "metadata": metadata}
        if self._wanted.form.shape == "table":
            item = {**item, "kind": "Table", "apiVersion": "meta.k8s.io/v1", "rows": [], "columnDefinitions": []}
        await self._send("BOOKMARK", item)

    async def _send(self, type_: str, item: Object) -> None:
        line = json.dumps({"type": type_, "object": item}, separators=(",", ":"))
        await self._response.write(line.encode() + b"\n")
