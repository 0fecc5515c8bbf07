"""Reading and writing objects, with everything an API server does on the way: the one door to the store for clients,
controllers and the node alike."""

import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from streamway.sandbox.cluster.api.admission import Admission
from streamway.sandbox.cluster.api.caller import Caller
from streamway.sandbox.cluster.api.decoding import decode
from streamway.sandbox.cluster.api.defaults import apply_defaults
from streamway.sandbox.cluster.api.faults import Faults
from streamway.sandbox.cluster.api.grants import check_grant
from streamway.sandbox.cluster.api.kinds import NAMESPACE, POD, SERVICE, Kind
from streamway.sandbox.cluster.api.ownership import (
    Owner,
    apply_fields,
    read_owners,
    track_update,
    write_owners,
)
from streamway.sandbox.cluster.api.schema import load_schema
from streamway.sandbox.cluster.api.statuses import (
    already_exists,
    bad_request,
    conflict,
    invalid_object,
    not_found,
    required,
    stale,
)
from streamway.sandbox.cluster.api.store import Store
from streamway.sandbox.cluster.api.validation import validate
from streamway.sandbox.cluster.objects import (
    Object,
    clone,
    dig,
    is_deleting,
    name_of,
    namespace_of,
    random_suffix,
    timestamp,
)

# What the server keeps about an object and no client changes.
_SYSTEM_METADATA = (
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "generation",
    "name",
    "namespace",
    "resourceVersion",
    "uid",
)
_INITIAL_STATUS: dict[Kind, Object] = {
    NAMESPACE: {"phase": "Active"},
    POD: {"phase": "Pending", "qosClass": "BestEffort"},
    SERVICE: {"loadBalancer": {}},
}

Change = Callable[[Object], Object]


class Registry:
    """All objects of the cluster, as clients may read and write them.

    Args:
        store: Where they are kept.
        faults: What goes wrong on order.
    """

    def __init__(self, store: Store, faults: Faults) -> None:
        self.store = store
        self.faults = faults
        self._admission = Admission(store, faults)

    def get(self, kind: Kind, namespace: str, name: str) -> Object:
        """Give an object, which must not be changed.

        Raises:
            ApiError: 404.
        """
        found = self.store.get(kind, namespace, name)
        if found is None:
            raise not_found(kind, name)
        return found

    def create(self, kind: Kind, namespace: str, body: Any, caller: Caller) -> Object:
        """Store a new object.

        Raises:
            ApiError: why not.
        """
        item = self._decode(kind, namespace, body, caller)
        _name(kind, item)
        if dig(item, "metadata", "resourceVersion"):
            raise bad_request("resourceVersion should not be set on objects to be created")
        self._prepare_new(kind, namespace, item)
        if self.store.get(kind, namespace, name_of(item)) is not None:
            raise already_exists(kind, name_of(item))
        writer = _owner(kind, caller, "Update")
        write_owners(item, track_update(read_owners(item), {}, item, load_schema().root(kind), writer))
        return self._store_new(kind, namespace, item, caller)

    def update(self, kind: Kind, namespace: str, name: str, body: Any, caller: Caller, subresource: str = "") -> Object:
        """Replace an object, or the part of it that a subresource is.

        Raises:
            ApiError: why not.
        """
        item = self._decode(kind, namespace, body, caller)
        return self.change(kind, namespace, name, lambda _: item, caller, subresource)

    def change(
        self, kind: Kind, namespace: str, name: str, edit: Change, caller: Caller, subresource: str = ""
    ) -> Object:
        """Replace an object by an edit of what it is now.

        Args:
            kind: Its kind.
            namespace: Its namespace, empty for cluster-scoped kinds.
            name: Its name.
            edit: Makes the new object from the current one, which it must not change.
            caller: Who asks.
            subresource: The part that is written.

        Raises:
            ApiError: why not.
        """
        live = self.get(kind, namespace, name)
        item = self._decode(kind, namespace, edit(live), caller)
        _check_preconditions(kind, live, item)
        item = _writable_part(live, item, subresource)
        writer = _owner(kind, caller, "Update", subresource)
        self._prepare_change(kind, namespace, item, live, subresource)
        owners = track_update(_owners_base(live, item), live, item, load_schema().root(kind), writer)
        write_owners(item, owners)
        return self._store_change(kind, live, item, caller)

    def apply(
        self, kind: Kind, namespace: str, name: str, body: Any, caller: Caller, *, force: bool, subresource: str = ""
    ) -> tuple[Object, bool]:
        """Apply a configuration server-side.

        Returns:
            The object, and whether it is new.

        Raises:
            ApiError: why not; 409 naming managers and fields on a conflict.
        """
        applied = self._decode(kind, namespace, body, caller)
        _check_applied(kind, name, body, applied)
        applied["metadata"]["name"] = name
        live = self.store.get(kind, namespace, name)
        if live is None and subresource:
            raise not_found(kind, name)
        if live is not None:
            _check_preconditions(kind, live, applied)
        base = live or {"apiVersion": kind.api_version, "kind": kind.name, "metadata": {"name": name}}
        root, writer = load_schema().root(kind), _owner(kind, caller, "Apply", subresource)
        declared = _declared_part(applied, subresource)
        item, owners = apply_fields(read_owners(base), base, declared, root, writer, force=force)
        if live is None:
            self._prepare_new(kind, namespace, item)
            write_owners(item, owners)
            return self._store_new(kind, namespace, item, caller), True
        item = _writable_part(live, item, subresource)
        self._prepare_change(kind, namespace, item, live, subresource)
        write_owners(item, owners)
        return self._store_change(kind, live, item, caller), False

    def write_status(self, kind: Kind, namespace: str, name: str, status: Object, caller: Caller) -> Object:
        """Replace the status of an object, as controllers do; nothing is written where nothing changed.

        Raises:
            ApiError: 404, when the object is gone.
        """
        live = self.get(kind, namespace, name)
        if dig(live, "status", default={}) == status:
            return live
        item = {**live, "metadata": dict(live["metadata"]), "status": clone(status)}
        writer = _owner(kind, caller, "Update", "status")
        owners = track_update(read_owners(live), live, item, load_schema().root(kind), writer)
        write_owners(item, owners)
        return self.store.put(kind, item)

    def _decode(self, kind: Kind, namespace: str, body: Any, caller: Caller) -> Object:
        item, unknown = decode(kind, body)
        if unknown and caller.field_validation == "Strict":
            listed = ", ".join(f'unknown field "{path}"' for path in unknown)
            raise bad_request(
                f'{kind.name} in version "{kind.version}" cannot be handled as a {kind.name}: strict decoding'
                f" error: {listed}"
            )
        if caller.field_validation == "Warn":
            caller.warnings += [f'unknown field "{path}"' for path in unknown]
        said = namespace_of(item)
        if kind.namespaced and said and said != namespace:
            raise bad_request(
                f"the namespace of the provided object does not match the namespace sent on the request"
                f" ({said} != {namespace})"
            )
        if kind.namespaced:
            item["metadata"]["namespace"] = namespace
        return item

    def _prepare_new(self, kind: Kind, namespace: str, item: Object) -> None:
        metadata = item["metadata"]
        for field in _SYSTEM_METADATA:
            if field not in ("name", "namespace"):
                metadata.pop(field, None)
        item.pop("status", None)
        if kind in _INITIAL_STATUS:
            item["status"] = clone(_INITIAL_STATUS[kind])
        metadata["uid"] = str(uuid.uuid4())
        metadata["creationTimestamp"] = timestamp()
        if kind.has_generation:
            metadata["generation"] = 1
        if kind is NAMESPACE:
            item.setdefault("spec", {})["finalizers"] = ["kubernetes"]
        apply_defaults(kind, item)
        if kind is POD:
            item["status"]["qosClass"] = _quality_of_service(item)
        self._admission.admit_creation(kind, namespace, item)
        validate(kind, item)

    def _store_new(self, kind: Kind, namespace: str, item: Object, caller: Caller) -> Object:
        check_grant(self.store, caller.user, kind, namespace, item)
        self._admission.check_room(kind, namespace, item)
        return item if caller.dry_run else self.store.put(kind, item)

    def _prepare_change(self, kind: Kind, namespace: str, item: Object, live: Object, subresource: str) -> None:
        _keep_system_metadata(item, live)
        if subresource == "status":
            return
        apply_defaults(kind, item)
        self._admission.admit_update(kind, namespace, item, live)
        validate(kind, item, live)
        if kind.has_generation and _intent(item) != _intent(live):
            item["metadata"]["generation"] = dig(live, "metadata", "generation", default=0) + 1

    def _store_change(self, kind: Kind, live: Object, item: Object, caller: Caller) -> Object:
        if item == live:
            return live
        check_grant(self.store, caller.user, kind, namespace_of(item), item)
        if caller.dry_run:
            return item
        if is_deleting(item) and not _must_wait(kind, item):
            return self.store.remove(kind, namespace_of(item), name_of(item)) or item
        return self.store.put(kind, item)


def _must_wait(kind: Kind, item: Object) -> bool:
    """Tell whether an object whose deletion has begun still has to wait for someone."""
    if kind is NAMESPACE and dig(item, "spec", "finalizers"):
        return True
    return bool(dig(item, "metadata", "finalizers")) or bool(dig(item, "metadata", "deletionGracePeriodSeconds"))


def _name(kind: Kind, item: Object) -> None:
    metadata = item["metadata"]
    if not metadata.get("name"):
        prefix = metadata.get("generateName")
        if not prefix:
            raise invalid_object(kind, "", [required("metadata.name", "name or generateName is required")])
        metadata["name"] = prefix[:58] + random_suffix()


def _owner(kind: Kind, caller: Caller, operation: str, subresource: str = "") -> Owner:
    return Owner(
        manager=caller.manager,
        operation=operation,
        api_version=kind.api_version,
        subresource=subresource,
        time=timestamp(),
    )


def _owners_base(live: Object, item: Object) -> list[Owner]:
    """Take the owners a client sent, who may thereby be rewritten or cleared, else the known ones."""
    sent = item["metadata"].get("managedFields")
    return read_owners(live if sent is None else item)


def _check_preconditions(kind: Kind, live: Object, item: Object) -> None:
    metadata = item["metadata"]
    said, known = metadata.get("uid"), dig(live, "metadata", "uid")
    if said and said != known:
        why = f"Precondition failed: UID in precondition: {said}, UID in object meta: {known}"
        raise conflict(kind, name_of(live), why)
    version = metadata.get("resourceVersion")
    if version and version != live["metadata"]["resourceVersion"]:
        raise stale(kind, name_of(live))


def _check_applied(kind: Kind, name: str, body: Any, applied: Object) -> None:
    if not body.get("apiVersion") or not body.get("kind"):
        raise bad_request("apiVersion and kind must be set in an applied configuration")
    if applied["metadata"].get("managedFields"):
        raise bad_request("metadata.managedFields must be nil")
    said = applied["metadata"].get("name")
    if said and said != name:
        raise bad_request(f"the name of the object ({said}) does not match the name on the URL ({name})")
    del kind


def _declared_part(applied: Object, subresource: str) -> Object:
    """Leave out what cannot be written through a path: an applied status is ignored, except at /status."""
    if subresource == "status":
        return {key: applied[key] for key in ("apiVersion", "kind", "status") if key in applied}
    return {key: value for key, value in applied.items() if key != "status"}


def _writable_part(live: Object, item: Object, subresource: str) -> Object:
    """Take from a sent object what its path may change, and the rest from the stored one."""
    if subresource == "status":
        metadata = clone(live["metadata"])
        if "managedFields" in item["metadata"]:
            metadata["managedFields"] = item["metadata"]["managedFields"]
        return {**clone(live), "metadata": metadata, "status": clone(item.get("status") or {})}
    writable: Object = clone(item)
    writable.pop("status", None)
    if "status" in live:
        writable["status"] = clone(live["status"])
    return writable


def _keep_system_metadata(item: Object, live: Object) -> None:
    metadata = item["metadata"]
    for field in _SYSTEM_METADATA:
        metadata.pop(field, None)
        if field in live["metadata"]:
            metadata[field] = live["metadata"][field]


def _intent(item: Object) -> Object:
    return {key: value for key, value in item.items() if key not in ("metadata", "status")}


def _quality_of_service(pod: Object) -> str:
    amounts = [
        (dig(container, "resources", "requests", default={}), dig(container, "resources", "limits", default={}))
        for container in pod["spec"].get("containers", [])
    ]
    named = [resource for pair in amounts for side in pair for resource in side if resource in ("cpu", "memory")]
    if not named:
        return "BestEffort"
    guaranteed = all(
        all(limits.get(name) and limits[name] == requests.get(name) for name in ("cpu", "memory"))
        for requests, limits in amounts
    )
    return "Guaranteed" if guaranteed else "Burstable"


def renamed(caller: Caller, manager: str) -> Caller:
    """Give a caller that writes under another manager's name."""
    return replace(caller, manager=manager)
