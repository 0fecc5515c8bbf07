"""Events: what the control plane and the node tell people about an object. The same news again only counts up."""

import time

from streamway.sandbox.cluster.api.caller import component
from streamway.sandbox.cluster.api.kinds import EVENT, NAMESPACE
from streamway.sandbox.cluster.api.registry import Registry
from streamway.sandbox.cluster.api.statuses import ApiError
from streamway.sandbox.cluster.objects import Object, clone, dig, name_of, namespace_of, timestamp, uid_of

# A message may be no longer than this, as in Kubernetes.
_LONGEST_MESSAGE = 1024


class Recorder:
    """Records events of one component.

    Args:
        registry: Where they go.
        source: The component's name.
        host: The node it runs on, empty for the control plane.
    """

    def __init__(self, registry: Registry, source: str, host: str = "") -> None:
        self._registry = registry
        self._source = {"component": source} | ({"host": host} if host else {})
        self._caller = component(source)
        self._known: dict[tuple[str, str, str, str], str] = {}

    def normal(self, item: Object, reason: str, message: str, field_path: str = "") -> None:
        """Record that something went as it should."""
        self._record("Normal", item, reason, message, field_path)

    def warning(self, item: Object, reason: str, message: str, field_path: str = "") -> None:
        """Record that something went wrong."""
        self._record("Warning", item, reason, message, field_path)

    def _record(self, kind: str, item: Object, reason: str, message: str, field_path: str) -> None:
        message = message[:_LONGEST_MESSAGE]
        key = (uid_of(item), reason, message, field_path)
        namespace = namespace_of(item) or "default"
        known = self._registry.store.get(EVENT, namespace, self._known.get(key, ""))
        if known is not None:
            self._count(known)
            return
        event = self._event(kind, item, reason, message, field_path)
        if self._registry.store.get(NAMESPACE, "", namespace) is None:
            return
        try:
            stored = self._registry.create(EVENT, namespace, event, self._caller)
        except ApiError as error:
            # A namespace that is being deleted takes no new events, and nothing depends on them.
            if error.code != 403:
                raise
            return
        self._known[key] = name_of(stored)

    def _count(self, known: Object) -> None:
        changed = clone(known)
        changed["count"] = known.get("count", 1) + 1
        changed["lastTimestamp"] = timestamp()
        self._registry.store.put(EVENT, changed)

    def _event(self, kind: str, item: Object, reason: str, message: str, field_path: str) -> Object:
        stamp = timestamp()
        involved = {
            "apiVersion": item.get("apiVersion", "v1"),
            "kind": item.get("kind"),
            "name": name_of(item),
            "namespace": namespace_of(item),
            "uid": uid_of(item),
            "resourceVersion": dig(item, "metadata", "resourceVersion"),
            "fieldPath": field_path,
        }
        return {
            "metadata": {"name": f"{name_of(item)}.{time.time_ns():x}"},
            "involvedObject": {key: value for key, value in involved.items() if value},
            "type": kind,
            "reason": reason,
            "message": message,
            "source": self._source,
            "firstTimestamp": stamp,
            "lastTimestamp": stamp,
            "count": 1,
            "reportingComponent": self._source["component"],
            "reportingInstance": self._source.get("host", ""),
        }
