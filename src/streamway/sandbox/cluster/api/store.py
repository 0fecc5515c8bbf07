"""The cluster's memory: every object, its resource version, and the recent changes that watches are fed from.

Objects are served from memory and written through to SQLite, so that a restarted server knows what it knew. There is
one writer, the event loop, so a change needs no lock.
"""

import json
import sqlite3
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from streamway.sandbox.cluster.api.kinds import KINDS, Kind
from streamway.sandbox.cluster.objects import Object, clone, name_of, namespace_of

# Changes kept for each kind; a watch that asks for older ones is told 410 Expired, as by a real API server.
HISTORY_LENGTH = 1000

ChangeType = Literal["ADDED", "MODIFIED", "DELETED"]


@dataclass(frozen=True, kw_only=True)
class Change:
    """One write.

    Args:
        revision: The resource version that the write got.
        type: What happened.
        kind: The kind of object.
        item: The object after the write, or as it was when it was deleted.
        previous: The object before the write.
    """

    revision: int
    type: ChangeType
    kind: Kind
    item: Object
    previous: Object | None


Listener = Callable[[Change], None]
Key = tuple[str, str]


class Store:
    """All objects of a cluster.

    Args:
        path: The database file; it is created where there is none.
    """

    def __init__(self, path: Path) -> None:
        self._objects: dict[Kind, dict[Key, Object]] = {kind: {} for kind in KINDS}
        self._history: dict[Kind, deque[Change]] = defaultdict(lambda: deque(maxlen=HISTORY_LENGTH))
        self._forgotten: dict[Kind, int] = {}
        self._listeners: list[Listener] = []
        self._database = _open(path)
        self.revision = self._load()
        self._forgotten = dict.fromkeys(KINDS, self.revision)

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        """Give a stored object, which must not be changed."""
        return self._objects[kind].get((namespace if kind.namespaced else "", name))

    def items(self, kind: Kind, namespace: str | None = None) -> list[Object]:
        """List stored objects, which must not be changed, in the order of their names."""
        found = self._objects[kind]
        return [found[key] for key in sorted(found) if namespace is None or key[0] == namespace]

    def put(self, kind: Kind, item: Object) -> Object:
        """Store an object under a new resource version and tell everyone.

        Returns:
            The stored object, which must not be changed.
        """
        stored: Object = clone(item)
        key = (namespace_of(stored), name_of(stored))
        previous = self._objects[kind].get(key)
        self.revision += 1
        stored["metadata"]["resourceVersion"] = str(self.revision)
        self._objects[kind][key] = stored
        self._write(kind, key, stored)
        self._record("ADDED" if previous is None else "MODIFIED", kind, stored, previous)
        return stored

    def remove(self, kind: Kind, namespace: str, name: str) -> Object | None:
        """Take an object out and tell everyone; give it as it last was, under the revision of its removal."""
        previous = self._objects[kind].pop((namespace, name), None)
        if previous is None:
            return None
        self.revision += 1
        last: Object = clone(previous)
        last["metadata"]["resourceVersion"] = str(self.revision)
        self._write(kind, (namespace, name), None)
        self._record("DELETED", kind, last, previous)
        return last

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call a function on every change from now on; returns what ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def changes_since(self, kind: Kind, revision: int) -> list[Change] | None:
        """List the changes of a kind after a revision; None when some of them are no longer known."""
        if revision < self._forgotten[kind]:
            return None
        return [change for change in self._history[kind] if change.revision > revision]

    def forget_history(self) -> None:
        """Drop all known changes, as a real server does when it compacts: older watches get 410 Expired."""
        self._history.clear()
        self._forgotten = dict.fromkeys(KINDS, self.revision)

    def _record(self, type_: ChangeType, kind: Kind, item: Object, previous: Object | None) -> None:
        history = self._history[kind]
        if len(history) == HISTORY_LENGTH:
            self._forgotten[kind] = history[0].revision
        change = Change(revision=self.revision, type=type_, kind=kind, item=item, previous=previous)
        history.append(change)
        for listener in list(self._listeners):
            listener(change)

    def _load(self) -> int:
        by_id = {_kind_id(kind): kind for kind in KINDS}
        for kind_id, namespace, name, body in self._database.execute("SELECT * FROM objects"):
            if kind_id in by_id:
                self._objects[by_id[kind_id]][(namespace, name)] = json.loads(body)
        row = self._database.execute("SELECT revision FROM revision").fetchone()
        return int(row[0])

    def _write(self, kind: Kind, key: Key, item: Object | None) -> None:
        row = (_kind_id(kind), *key)
        if item is None:
            self._database.execute("DELETE FROM objects WHERE kind=? AND namespace=? AND name=?", row)
        else:
            body = json.dumps(item, separators=(",", ":"))
            self._database.execute("INSERT OR REPLACE INTO objects VALUES (?,?,?,?)", (*row, body))
        self._database.execute("UPDATE revision SET revision=?", (self.revision,))
        self._database.commit()

    def every_object(self) -> Iterator[tuple[Kind, Object]]:
        """Go through everything that is stored."""
        for kind in KINDS:
            for item in self.items(kind):
                yield kind, item


def _kind_id(kind: Kind) -> str:
    return f"{kind.api_version}/{kind.plural}"


def _open(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    database = sqlite3.connect(path)
    # A crash of this process loses nothing with either setting; only a crash of the machine could.
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=OFF")
    database.execute(
        "CREATE TABLE IF NOT EXISTS objects (kind TEXT, namespace TEXT, name TEXT, body TEXT,"
        " PRIMARY KEY (kind, namespace, name))"
    )
    database.execute("CREATE TABLE IF NOT EXISTS revision (revision INTEGER)")
    if database.execute("SELECT count(*) FROM revision").fetchone()[0] == 0:
        # Real clusters are never at revision 1; starting higher catches clients that count on small numbers.
        database.execute("INSERT INTO revision VALUES (1000)")
    database.commit()
    return database
