"""Events have two versions, core and events.k8s.io; they are stored as core and translated."""

from streamway.sandbox.cluster.objects import Object

_RENAMED = {
    "involvedObject": "regarding",
    "message": "note",
    "firstTimestamp": "deprecatedFirstTimestamp",
    "lastTimestamp": "deprecatedLastTimestamp",
    "count": "deprecatedCount",
    "source": "deprecatedSource",
    "reportingComponent": "reportingController",
}
_BACK = {new: old for old, new in _RENAMED.items()}


def to_new_event(item: Object) -> Object:
    """Present a stored event as events.k8s.io/v1."""
    renamed = {_RENAMED.get(key, key): value for key, value in item.items()}
    return {**renamed, "apiVersion": "events.k8s.io/v1"}


def from_new_event(item: Object) -> Object:
    """Turn a sent events.k8s.io/v1 event into the stored form."""
    renamed = {_BACK.get(key, key): value for key, value in (item or {}).items()}
    return {**renamed, "apiVersion": "v1"}
