"""Garbage collection: what is owned goes with its owner, before it, or stays, as the deletion asked."""

from collections.abc import Iterable

from streamway.sandbox.cluster.api.deletion import FOREGROUND, ORPHAN, delete
from streamway.sandbox.cluster.api.kinds import EVENT, Kind, find_kind
from streamway.sandbox.cluster.api.registry import Registry
from streamway.sandbox.cluster.api.store import Change
from streamway.sandbox.cluster.control.loop import Key
from streamway.sandbox.cluster.control.owned import CONTROLLER
from streamway.sandbox.cluster.objects import Object, clone, dig, is_deleting, name_of, namespace_of, uid_of

_SEPARATOR = "|"


class GarbageCollector:
    """Deletes what has lost its owner, and helps owners that wait for what they own."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def keys_for(self, change: Change) -> Iterable[Key]:
        """React to owners that go, to objects that have owners, and to owned objects that are gone."""
        if change.kind is EVENT:
            return
        owners = dig(change.item, "metadata", "ownerReferences", default=[])
        if change.type == "DELETED":
            yield "owner-gone", uid_of(change.item)
            for owner in owners:
                yield _address(find_kind(owner["apiVersion"], owner["kind"]), namespace_of(change.item), owner["name"])
        elif owners or (is_deleting(change.item) and dig(change.item, "metadata", "finalizers")):
            yield _address(change.kind, namespace_of(change.item), name_of(change.item))

    def reconcile(self, key: Key) -> float | None:
        """Look at one object, or at everything that a deleted object owned."""
        if key[0] == "owner-gone":
            for owned_kind, item in self._owned_by(key[1]):
                self._check_owners(owned_kind, item)
            return None
        api_version, name = key[0].split(_SEPARATOR)
        kind = find_kind(api_version, name)
        namespace, _, item_name = key[1].partition(_SEPARATOR)
        found = self._registry.store.get(kind, namespace, item_name) if kind else None
        if kind is not None and found is not None:
            self._look_at(kind, found)
        return None

    def _look_at(self, kind: Kind, found: Object) -> None:
        finalizers = dig(found, "metadata", "finalizers", default=[])
        if is_deleting(found) and ORPHAN in finalizers:
            self._orphan(kind, found)
        elif is_deleting(found) and FOREGROUND in finalizers:
            self._delete_owned_first(kind, found)
        else:
            self._check_owners(kind, found)

    def _owned_by(self, uid: str) -> list[tuple[Kind, Object]]:
        return [
            (kind, item)
            for kind, item in self._registry.store.every_object()
            if any(owner["uid"] == uid for owner in dig(item, "metadata", "ownerReferences", default=[]))
        ]

    def _check_owners(self, kind: Kind, item: Object) -> None:
        owners = dig(item, "metadata", "ownerReferences", default=[])
        if owners and not is_deleting(item) and not any(self._exists(owner, item) for owner in owners):
            delete(
                self._registry, kind, namespace_of(item), name_of(item), {"propagationPolicy": "Background"}, CONTROLLER
            )

    def _exists(self, owner: Object, item: Object) -> bool:
        kind = find_kind(owner["apiVersion"], owner["kind"])
        if kind is None:
            return True
        found = self._registry.store.get(kind, namespace_of(item), owner["name"])
        return found is not None and uid_of(found) == owner["uid"]

    def _delete_owned_first(self, kind: Kind, owner: Object) -> None:
        blocking = False
        for owned_kind, item in self._owned_by(uid_of(owner)):
            references = dig(item, "metadata", "ownerReferences", default=[])
            blocking |= any(one["uid"] == uid_of(owner) and one.get("blockOwnerDeletion") for one in references)
            if not is_deleting(item):
                options = {"propagationPolicy": "Foreground"}
                delete(self._registry, owned_kind, namespace_of(item), name_of(item), options, CONTROLLER)
        if not blocking:
            self._drop_finalizer(kind, owner, FOREGROUND)

    def _orphan(self, kind: Kind, owner: Object) -> None:
        for owned_kind, item in self._owned_by(uid_of(owner)):

            def freed(live: Object) -> Object:
                changed: Object = clone(live)
                references = [one for one in changed["metadata"]["ownerReferences"] if one["uid"] != uid_of(owner)]
                changed["metadata"]["ownerReferences"] = references
                return changed

            self._registry.change(owned_kind, namespace_of(item), name_of(item), freed, CONTROLLER)
        self._drop_finalizer(kind, owner, ORPHAN)

    def _drop_finalizer(self, kind: Kind, item: Object, finalizer: str) -> None:
        def dropped(live: Object) -> Object:
            changed: Object = clone(live)
            kept = [one for one in changed["metadata"].get("finalizers", []) if one != finalizer]
            changed["metadata"]["finalizers"] = kept
            return changed

        self._registry.change(kind, namespace_of(item), name_of(item), dropped, CONTROLLER)


def _address(kind: Kind | None, namespace: str, name: str) -> Key:
    if kind is None:
        return "unknown" + _SEPARATOR, ""
    return f"{kind.api_version}{_SEPARATOR}{kind.name}", f"{namespace if kind.namespaced else ''}{_SEPARATOR}{name}"
