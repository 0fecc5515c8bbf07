"""Who belongs to whom: the look-ups that workload controllers share."""

from collections.abc import Iterable

from streamway.sandbox.cluster.api.caller import component
from streamway.sandbox.cluster.api.kinds import POD, Kind
from streamway.sandbox.cluster.api.registry import Registry
from streamway.sandbox.cluster.api.selectors import match_selector
from streamway.sandbox.cluster.api.store import Change
from streamway.sandbox.cluster.control.loop import Key
from streamway.sandbox.cluster.objects import (
    Object,
    clone,
    controller_of,
    dig,
    is_deleting,
    labels_of,
    name_of,
    namespace_of,
    uid_of,
)

CONTROLLER = component("kube-controller-manager")

_FINISHED = ("Succeeded", "Failed")


def keys_of(change: Change, owners: Kind, owned: Kind) -> Iterable[Key]:
    """Name the object of a kind that a change is about: itself, or the one that owns what has changed."""
    item = change.item
    if change.kind is owners:
        yield namespace_of(item), name_of(item)
    elif change.kind is owned:
        owner = controller_of(item)
        if owner is not None and owner["kind"] == owners.name:
            yield namespace_of(item), owner["name"]


def owner_reference(owner: Object) -> Object:
    """Make the reference by which a controller owns an object."""
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": name_of(owner),
        "uid": uid_of(owner),
        "controller": True,
        "blockOwnerDeletion": True,
    }


def claim(registry: Registry, owner: Object, kind: Kind) -> list[Object]:
    """List what an owner controls, taking in what matches its selector and belongs to nobody."""
    matches = match_selector(dig(owner, "spec", "selector"))
    mine = []
    for item in registry.store.items(kind, namespace_of(owner)):
        controller = controller_of(item)
        if controller is not None:
            if controller["uid"] == uid_of(owner):
                mine.append(item)
        elif matches(labels_of(item)) and not is_deleting(item) and not is_deleting(owner):
            mine.append(_adopt(registry, owner, kind, item))
    return mine


def _adopt(registry: Registry, owner: Object, kind: Kind, item: Object) -> Object:
    def adopted(live: Object) -> Object:
        changed: Object = clone(live)
        changed["metadata"].setdefault("ownerReferences", []).append(owner_reference(owner))
        return changed

    return registry.change(kind, namespace_of(item), name_of(item), adopted, CONTROLLER)


def create_pod(registry: Registry, owner: Object) -> Object:
    """Create a pod from its owner's template.

    Raises:
        ApiError: why not.
    """
    template = clone(owner["spec"]["template"])
    metadata = {
        **{key: value for key, value in template.get("metadata", {}).items() if key in ("labels", "annotations")},
        "generateName": f"{name_of(owner)}-",
        "ownerReferences": [owner_reference(owner)],
    }
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
    return registry.create(POD, namespace_of(owner), body, CONTROLLER)


def is_active(pod: Object) -> bool:
    """Tell whether a pod still counts: neither finished nor being deleted."""
    return not is_deleting(pod) and dig(pod, "status", "phase") not in _FINISHED
