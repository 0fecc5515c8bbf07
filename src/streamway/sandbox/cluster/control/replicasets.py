"""ReplicaSets: as many pods as wanted, the least useful ones removed first."""

from collections.abc import Iterable

from streamway.sandbox.cluster.api.deletion import delete
from streamway.sandbox.cluster.api.kinds import POD, REPLICA_SET
from streamway.sandbox.cluster.api.registry import Registry
from streamway.sandbox.cluster.api.statuses import ApiError
from streamway.sandbox.cluster.api.store import Change
from streamway.sandbox.cluster.control.events import Recorder
from streamway.sandbox.cluster.control.loop import Key
from streamway.sandbox.cluster.control.owned import CONTROLLER, claim, create_pod, is_active, keys_of
from streamway.sandbox.cluster.objects import (
    Object,
    age_seconds,
    clone,
    condition_of,
    dig,
    is_deleting,
    labels_of,
    name_of,
    namespace_of,
    set_condition,
)

_RETRY_SECONDS = 1.0
_PHASE_ORDER = {"Pending": 0, "Unknown": 1, "Running": 2}


class ReplicaSetController:
    """Keeps the number of pods of every ReplicaSet.

    Args:
        registry: The cluster's objects.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._recorder = Recorder(registry, "replicaset-controller")

    def keys_for(self, change: Change) -> Iterable[Key]:
        """React to ReplicaSets and to the pods they own."""
        return keys_of(change, REPLICA_SET, POD)

    def reconcile(self, key: Key) -> float | None:
        """Create or delete pods, then tell how many there are."""
        replica_set = self._registry.store.get(REPLICA_SET, *key)
        if replica_set is None:
            return None
        pods = [pod for pod in claim(self._registry, replica_set, POD) if is_active(pod)]
        failure: ApiError | None = None
        if not is_deleting(replica_set):
            failure = self._resize(replica_set, pods)
            pods = [pod for pod in claim(self._registry, replica_set, POD) if is_active(pod)]
        soonest = self._write_status(replica_set, pods, failure)
        return _RETRY_SECONDS if failure is not None else soonest

    def _resize(self, replica_set: Object, pods: list[Object]) -> ApiError | None:
        missing = dig(replica_set, "spec", "replicas", default=0) - len(pods)
        for _ in range(missing):
            try:
                pod = create_pod(self._registry, replica_set)
            except ApiError as error:
                self._recorder.warning(replica_set, "FailedCreate", f"Error creating: {error.message}")
                return error
            self._recorder.normal(replica_set, "SuccessfulCreate", f"Created pod: {name_of(pod)}")
        for pod in sorted(pods, key=_usefulness)[: max(0, -missing)]:
            delete(self._registry, POD, namespace_of(pod), name_of(pod), {}, CONTROLLER)
            self._recorder.normal(replica_set, "SuccessfulDelete", f"Deleted pod: {name_of(pod)}")
        return None

    def _write_status(self, replica_set: Object, pods: list[Object], failure: ApiError | None) -> float | None:
        wait = dig(replica_set, "spec", "minReadySeconds", default=0)
        ready = [pod for pod in pods if is_ready(pod)]
        remaining = [wait - ready_seconds(pod) for pod in ready]
        template_labels = dig(replica_set, "spec", "template", "metadata", "labels", default={})
        status: Object = clone(replica_set.get("status") or {})
        status |= {
            "replicas": len(pods),
            "fullyLabeledReplicas": sum(1 for pod in pods if template_labels.items() <= labels_of(pod).items()),
            "readyReplicas": len(ready),
            "availableReplicas": sum(1 for left in remaining if left <= 0),
            "observedGeneration": dig(replica_set, "metadata", "generation", default=0),
        }
        _set_failure(status, failure)
        for name in ("fullyLabeledReplicas", "readyReplicas", "availableReplicas"):
            if not status[name]:
                del status[name]
        self._registry.write_status(REPLICA_SET, namespace_of(replica_set), name_of(replica_set), status, CONTROLLER)
        waiting = [left for left in remaining if left > 0]
        return min(waiting) + 0.01 if waiting else None


def _set_failure(status: Object, failure: ApiError | None) -> None:
    if failure is not None:
        condition = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": failure.message}
        set_condition(status, condition)
        return
    others = [one for one in status.get("conditions") or [] if one["type"] != "ReplicaFailure"]
    status.pop("conditions", None)
    if others:
        status["conditions"] = others


def is_ready(pod: Object) -> bool:
    """Tell whether a pod is Ready."""
    return (condition_of(pod, "Ready") or {}).get("status") == "True"


def ready_seconds(pod: Object) -> float:
    """Tell for how long a pod has been Ready."""
    return age_seconds((condition_of(pod, "Ready") or {}).get("lastTransitionTime"))


def _usefulness(pod: Object) -> tuple[bool, int, bool, str]:
    """Order pods so that the ones to delete come first: unassigned, pending, not ready, youngest."""
    status = pod.get("status") or {}
    inverted_age = "".join(chr(255 - ord(letter)) for letter in dig(pod, "metadata", "creationTimestamp", default=""))
    return (
        bool(dig(pod, "spec", "nodeName")),
        _PHASE_ORDER.get(status.get("phase", ""), 1),
        is_ready(pod),
        inverted_age,
    )
