"""Deleting objects: grace periods, finalizers, propagation, preconditions, and evictions with their budgets."""

from datetime import timedelta
from typing import Any

from streamway.sandbox.cluster.api.caller import Caller
from streamway.sandbox.cluster.api.kinds import DISRUPTION_BUDGET, NAMESPACE, POD, Kind
from streamway.sandbox.cluster.api.registry import Registry
from streamway.sandbox.cluster.api.selectors import match_selector
from streamway.sandbox.cluster.api.statuses import ApiError, conflict
from streamway.sandbox.cluster.objects import (
    Object,
    clone,
    dig,
    is_deleting,
    labels_of,
    name_of,
    namespace_of,
    now,
    parse_time,
    timestamp,
)

FOREGROUND = "foregroundDeletion"
ORPHAN = "orphan"
_FINALIZER_OF = {"Foreground": FOREGROUND, "Orphan": ORPHAN}
_FINISHED = ("Succeeded", "Failed")


def delete(registry: Registry, kind: Kind, namespace: str, name: str, options: Object, caller: Caller) -> Object:
    """Delete an object, or begin to.

    Args:
        registry: The cluster's objects.
        kind: Kind of the object.
        namespace: Its namespace.
        name: Its name.
        options: DeleteOptions: gracePeriodSeconds, propagationPolicy, preconditions.
        caller: Who asks.

    Returns:
        The object as it is now, or as it last was when it is gone.

    Raises:
        ApiError: 404, or 409 where a precondition fails.
    """
    live = registry.get(kind, namespace, name)
    _check_preconditions(kind, live, options.get("preconditions") or {})
    registry.faults.check_admission(kind, namespace, "DELETE")
    item = clone(live)
    _add_propagation_finalizer(item, options)
    grace = _grace_seconds(kind, item, options)
    must_wait = bool(dig(item, "metadata", "finalizers")) or grace > 0 or kind is NAMESPACE
    if caller.dry_run:
        return live
    if not must_wait:
        return registry.store.remove(kind, namespace_of(live), name) or live
    _mark(kind, item, grace)
    return live if item == live else registry.store.put(kind, item)


def _check_preconditions(kind: Kind, live: Object, wanted: Object) -> None:
    for field, shown in (("uid", "UID"), ("resourceVersion", "ResourceVersion")):
        known = live["metadata"].get(field)
        if wanted.get(field) and wanted[field] != known:
            why = f"Precondition failed: {shown} in precondition: {wanted[field]}, {shown} in object meta: {known}"
            raise conflict(kind, name_of(live), why)


def _add_propagation_finalizer(item: Object, options: Object) -> None:
    policy = options.get("propagationPolicy")
    if policy is None and options.get("orphanDependents"):
        policy = "Orphan"
    finalizer = _FINALIZER_OF.get(policy or "")
    if finalizer is None:
        return
    known = [one for one in dig(item, "metadata", "finalizers", default=[]) if one not in (FOREGROUND, ORPHAN)]
    item["metadata"]["finalizers"] = [*known, finalizer]


def _grace_seconds(kind: Kind, item: Object, options: Object) -> int:
    """Only pods that a node knows and that are not finished are given time."""
    if kind is not POD:
        return 0
    spec, status = item["spec"], item.get("status") or {}
    if not spec.get("nodeName") or status.get("phase") in _FINISHED:
        return 0
    asked = options.get("gracePeriodSeconds")
    return int(spec.get("terminationGracePeriodSeconds", 30) if asked is None else asked)


def _mark(kind: Kind, item: Object, grace: int) -> None:
    metadata = item["metadata"]
    known = metadata.get("deletionGracePeriodSeconds")
    if is_deleting(item) and (known is None or known <= grace):
        return
    began = now()
    if is_deleting(item) and known is not None:
        began = parse_time(metadata["deletionTimestamp"]) - timedelta(seconds=known)
    metadata["deletionTimestamp"] = timestamp(began + timedelta(seconds=grace))
    metadata["deletionGracePeriodSeconds"] = grace
    if kind.has_generation and known is None:
        metadata["generation"] = metadata.get("generation", 0) + 1
    if kind is NAMESPACE:
        item["status"]["phase"] = "Terminating"


def evict(registry: Registry, namespace: str, name: str, body: Any, caller: Caller) -> Object:
    """Carry out an Eviction: a deletion that the disruption budgets allow.

    Raises:
        ApiError: 429 when a budget has nothing to spare.
    """
    pod = registry.get(POD, namespace, name)
    options = (body or {}).get("deleteOptions") or {}
    for budget in registry.store.items(DISRUPTION_BUDGET, namespace):
        if not match_selector(dig(budget, "spec", "selector"))(labels_of(pod)):
            continue
        if dig(budget, "status", "disruptionsAllowed", default=0) > 0 or not _is_healthy(pod):
            continue
        healthy = dig(budget, "status", "currentHealthy", default=0)
        wanted = dig(budget, "status", "desiredHealthy", default=0)
        cause = {
            "reason": "DisruptionBudget",
            "message": (
                f"The disruption budget {name_of(budget)} needs {wanted} healthy pods and has {healthy} currently"
            ),
        }
        text = "Cannot evict pod as it would violate the pod's disruption budget."
        raise ApiError(429, "TooManyRequests", text, {"causes": [cause]})
    delete(registry, POD, namespace, name, options, caller)
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}


def _is_healthy(pod: Object) -> bool:
    conditions = dig(pod, "status", "conditions", default=[])
    return any(one.get("type") == "Ready" and one.get("status") == "True" for one in conditions)
