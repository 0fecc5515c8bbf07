"""Statuses that only count: quotas, disruption budgets, autoscalers, claims."""

import math
from collections.abc import Iterable
from typing import Any

from streamway.sandbox.cluster.api.kinds import (
    AUTOSCALER,
    CLAIM,
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    EVENT,
    POD,
    QUOTA,
    REPLICA_SET,
    STORAGE_CLASS,
)
from streamway.sandbox.cluster.api.quantities import format_quantity
from streamway.sandbox.cluster.api.quota import quota_usage
from streamway.sandbox.cluster.api.registry import Registry
from streamway.sandbox.cluster.api.selectors import match_selector
from streamway.sandbox.cluster.api.store import Change
from streamway.sandbox.cluster.control.events import Recorder
from streamway.sandbox.cluster.control.loop import Key
from streamway.sandbox.cluster.control.owned import CONTROLLER, is_active
from streamway.sandbox.cluster.control.replicasets import is_ready
from streamway.sandbox.cluster.control.rollouts import wanted_replicas
from streamway.sandbox.cluster.objects import (
    Object,
    age_seconds,
    clone,
    controller_of,
    dig,
    labels_of,
    name_of,
    namespace_of,
    set_condition,
)

# The time to live of events in a real API server.
_EVENT_SECONDS = 3600.0


class QuotaController:
    """Says in every ResourceQuota how much of it is used.

    Args:
        registry: The cluster's objects.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def keys_for(self, change: Change) -> Iterable[Key]:
        """React to anything in a namespace that has quotas."""
        if change.kind.namespaced:
            for quota in self._registry.store.items(QUOTA, namespace_of(change.item)):
                yield namespace_of(quota), name_of(quota)

    def reconcile(self, key: Key) -> float | None:
        """Count one quota's use."""
        quota = self._registry.store.get(QUOTA, *key)
        if quota is None:
            return None
        used = quota_usage(self._registry.store, quota)
        status = {
            "hard": clone(dig(quota, "spec", "hard", default={})),
            "used": {name: format_quantity(amount, name) for name, amount in used.items()},
        }
        self._registry.write_status(QUOTA, *key, status, CONTROLLER)
        return None


class DisruptionBudgetController:
    """Says in every PodDisruptionBudget how many pods can be spared.

    Args:
        registry: The cluster's objects.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def keys_for(self, change: Change) -> Iterable[Key]:
        """React to budgets and to pods."""
        if change.kind is DISRUPTION_BUDGET:
            yield namespace_of(change.item), name_of(change.item)
        elif change.kind is POD:
            for budget in self._registry.store.items(DISRUPTION_BUDGET, namespace_of(change.item)):
                yield namespace_of(budget), name_of(budget)

    def reconcile(self, key: Key) -> float | None:
        """Count one budget's pods."""
        budget = self._registry.store.get(DISRUPTION_BUDGET, *key)
        if budget is None:
            return None
        matches = match_selector(dig(budget, "spec", "selector"))
        pods = [pod for pod in self._registry.store.items(POD, key[0]) if matches(labels_of(pod)) and is_active(pod)]
        expected = self._expected(pods)
        healthy = sum(1 for pod in pods if is_ready(pod))
        desired = _desired(budget["spec"], expected)
        allowed = max(0, healthy - desired)
        status: Object = {
            "conditions": clone(dig(budget, "status", "conditions", default=[])),
            "currentHealthy": healthy,
            "desiredHealthy": desired,
            "disruptionsAllowed": allowed,
            "expectedPods": expected,
            "observedGeneration": dig(budget, "metadata", "generation", default=0),
        }
        condition = {
            "type": "DisruptionAllowed",
            "status": "True" if allowed else "False",
            "reason": "SufficientPods" if allowed else "InsufficientPods",
            "message": "",
            "observedGeneration": status["observedGeneration"],
        }
        set_condition(status, condition)
        self._registry.write_status(DISRUPTION_BUDGET, *key, status, CONTROLLER)
        return None

    def _expected(self, pods: list[Object]) -> int:
        """Count the pods that ought to be there, by their controllers."""
        total, seen = 0, set()
        for pod in pods:
            owner = controller_of(pod)
            if owner is None:
                total += 1
            elif owner["uid"] not in seen:
                seen.add(owner["uid"])
                found = self._registry.store.get(REPLICA_SET, namespace_of(pod), owner["name"])
                total += wanted_replicas(found) if found else 0
        return total


def _desired(spec: Object, expected: int) -> int:
    if spec.get("maxUnavailable") is not None:
        return max(0, expected - _amount(spec["maxUnavailable"], expected))
    return _amount(spec.get("minAvailable", 1), expected)


def _amount(value: Any, total: int) -> int:
    return value if isinstance(value, int) else math.ceil(int(str(value).rstrip("%")) * total / 100)


class AutoscalerController:
    """Tells of every HorizontalPodAutoscaler what there is; without a metrics server it cannot decide anything.

    Args:
        registry: The cluster's objects.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def keys_for(self, change: Change) -> Iterable[Key]:
        """React to autoscalers and to Deployments."""
        if change.kind in (AUTOSCALER, DEPLOYMENT):
            for scaler in self._registry.store.items(AUTOSCALER, namespace_of(change.item)):
                yield namespace_of(scaler), name_of(scaler)

    def reconcile(self, key: Key) -> float | None:
        """Write one autoscaler's status, and keep its target within its bounds."""
        scaler = self._registry.store.get(AUTOSCALER, *key)
        if scaler is None:
            return None
        target = dig(scaler, "spec", "scaleTargetRef", default={})
        found = self._registry.store.get(DEPLOYMENT, key[0], target.get("name", ""))
        status: Object = {"conditions": clone(dig(scaler, "status", "conditions", default=[]))}
        if found is None:
            text = (
                "the HPA controller was unable to get the target's current scale: deployments.apps"
                f' "{target.get("name")}" not found'
            )
            _able(status, "False", "FailedGetScale", text)
        else:
            _able(status, "True", "SucceededGetScale", "the HPA controller was able to get the target's current scale")
            status["currentReplicas"] = dig(found, "status", "replicas", default=0)
            text = (
                "the HPA was unable to compute the replica count: failed to get cpu utilization: unable to get metrics"
                " for resource cpu: unable to fetch metrics from resource metrics API"
            )
            condition = {"type": "ScalingActive", "status": "False", "reason": "FailedGetResourceMetric"}
            set_condition(status, {**condition, "message": text})
            status["desiredReplicas"] = self._keep_in_bounds(scaler, found)
        status.setdefault("desiredReplicas", 0)
        self._registry.write_status(AUTOSCALER, *key, status, CONTROLLER)
        return None

    def _keep_in_bounds(self, scaler: Object, deployment: Object) -> int:
        current = wanted_replicas(deployment)
        spec = scaler["spec"]
        wanted = min(max(current, spec.get("minReplicas", 1)), spec["maxReplicas"]) if current else 0
        if wanted != current:

            def rescaled(live: Object) -> Object:
                changed: Object = clone(live)
                changed["spec"]["replicas"] = wanted
                return changed

            self._registry.change(DEPLOYMENT, namespace_of(deployment), name_of(deployment), rescaled, CONTROLLER)
        return int(wanted)


def _able(status: Object, value: str, reason: str, message: str) -> None:
    set_condition(status, {"type": "AbleToScale", "status": value, "reason": reason, "message": message})


class EventExpiry:
    """Removes events that are older than an API server keeps them.

    Args:
        registry: The cluster's objects.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def keys_for(self, change: Change) -> Iterable[Key]:
        """React to new events."""
        if change.kind is EVENT and change.type == "ADDED":
            yield namespace_of(change.item), name_of(change.item)

    def reconcile(self, key: Key) -> float | None:
        """Remove one event when its time has come, and look again then."""
        event = self._registry.store.get(EVENT, *key)
        if event is None:
            return None
        left = _EVENT_SECONDS - age_seconds(event.get("lastTimestamp") or event["metadata"].get("creationTimestamp"))
        if left > 0:
            return left
        self._registry.store.remove(EVENT, *key)
        return None


class ClaimController:
    """Binds every PersistentVolumeClaim whose class exists; its bytes are a folder beside the pods'.

    Args:
        registry: The cluster's objects.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._recorder = Recorder(registry, "persistentvolume-controller")

    def keys_for(self, change: Change) -> Iterable[Key]:
        """React to claims and to storage classes."""
        if change.kind is CLAIM:
            yield namespace_of(change.item), name_of(change.item)
        elif change.kind is STORAGE_CLASS:
            for claim in self._registry.store.items(CLAIM):
                yield namespace_of(claim), name_of(claim)

    def reconcile(self, key: Key) -> float | None:
        """Bind one claim, or say why not."""
        claim = self._registry.store.get(CLAIM, *key)
        if claim is None or dig(claim, "status", "phase") == "Bound":
            return None
        wanted = dig(claim, "spec", "storageClassName", default="")
        if self._registry.store.get(STORAGE_CLASS, "", wanted) is None:
            text = f'storageclass.storage.k8s.io "{wanted}" not found'
            self._recorder.warning(claim, "ProvisioningFailed", text)
            self._registry.write_status(CLAIM, *key, {"phase": "Pending"}, CONTROLLER)
            return None
        spec = claim["spec"]
        capacity = {"storage": dig(spec, "resources", "requests", "storage", default="1Gi")}
        status = {"phase": "Bound", "accessModes": clone(spec.get("accessModes") or []), "capacity": capacity}
        self._registry.write_status(CLAIM, *key, status, CONTROLLER)
        return None
