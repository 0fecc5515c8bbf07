"""The scheduler: gives every pod a node that has room for it, or says why there is none."""

from collections import Counter
from collections.abc import Iterable
from decimal import Decimal

from streamway.sandbox.cluster.api.caller import component
from streamway.sandbox.cluster.api.deletion import delete
from streamway.sandbox.cluster.api.kinds import NODE, POD
from streamway.sandbox.cluster.api.quota import pod_amounts
from streamway.sandbox.cluster.api.registry import Registry
from streamway.sandbox.cluster.api.resources import bind_pod
from streamway.sandbox.cluster.api.store import Change
from streamway.sandbox.cluster.control.events import Recorder
from streamway.sandbox.cluster.control.fitting import is_resource_shortage, misfits
from streamway.sandbox.cluster.control.loop import Key
from streamway.sandbox.cluster.objects import (
    Object,
    clone,
    dig,
    is_deleting,
    name_of,
    namespace_of,
    set_condition,
    uid_of,
)

_SCHEDULER = component("kube-scheduler")
_FINISHED = ("Succeeded", "Failed")


class Scheduler:
    """Assigns pods to nodes.

    Args:
        registry: The cluster's objects.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._recorder = Recorder(registry, "default-scheduler")
        self._autoscaler = Recorder(registry, "cluster-autoscaler")
        self._told: set[str] = set()

    def keys_for(self, change: Change) -> Iterable[Key]:
        """React to pods without a node, and to whatever may have made room."""
        if change.kind is POD:
            if _is_waiting(change.item) and change.type != "DELETED":
                if change.type == "ADDED":
                    yield namespace_of(change.item), name_of(change.item)
            elif change.type == "DELETED" or dig(change.item, "status", "phase") in _FINISHED:
                yield from self._waiting()
        elif change.kind is NODE and _matters(change):
            yield from self._waiting()

    def _waiting(self) -> list[Key]:
        return [(namespace_of(pod), name_of(pod)) for pod in self._registry.store.items(POD) if _is_waiting(pod)]

    def reconcile(self, key: Key) -> float | None:
        """Place one pod, or say why it cannot be placed."""
        pod = self._registry.store.get(POD, *key)
        if pod is None or not _is_waiting(pod):
            return None
        nodes = self._registry.store.items(NODE)
        reasons = {name_of(node): misfits(pod, node, self._used(name_of(node))) for node in nodes}
        fitting = [name for name, why in reasons.items() if not why]
        if fitting:
            self._bind(pod, fitting[0])
        elif not self._preempt(pod, nodes, reasons):
            self._refuse(pod, reasons)
        return None

    def _used(self, node: str) -> dict[str, Decimal]:
        used: dict[str, Decimal] = {"pods": Decimal(0)}
        for pod in self._pods_on(node):
            used["pods"] += 1
            for name, amount in pod_amounts(pod, "requests").items():
                used[name] = used.get(name, Decimal(0)) + amount
        return used

    def _pods_on(self, node: str) -> list[Object]:
        return [
            pod
            for pod in self._registry.store.items(POD)
            if dig(pod, "spec", "nodeName") == node and dig(pod, "status", "phase") not in _FINISHED
        ]

    def _bind(self, pod: Object, node: str) -> None:
        bound = clone(pod)
        bound["spec"]["nodeName"] = node
        bound["status"].pop("nominatedNodeName", None)
        set_condition(bound["status"], {"type": "PodScheduled", "status": "True"})
        bind_pod(self._registry, namespace_of(pod), name_of(pod), bound, _SCHEDULER)
        text = f"Successfully assigned {namespace_of(pod)}/{name_of(pod)} to {node}"
        self._recorder.normal(pod, "Scheduled", text)

    def _preempt(self, pod: Object, nodes: list[Object], reasons: dict[str, list[str]]) -> bool:
        """Make room by removing pods of lower priority, where that is enough."""
        priority = dig(pod, "spec", "priority", default=0)
        for node in nodes:
            name = name_of(node)
            lower = [one for one in self._pods_on(name) if dig(one, "spec", "priority", default=0) < priority]
            if not lower or not is_resource_shortage(reasons[name]):
                continue
            left = self._used(name)
            for victim in lower:
                left["pods"] -= 1
                for resource, amount in pod_amounts(victim, "requests").items():
                    left[resource] -= amount
            if misfits(pod, node, left):
                continue
            for victim in lower:
                if not is_deleting(victim):
                    self.preempt(victim, pod)
            return True
        return False

    def preempt(self, victim: Object, winner: Object | None) -> None:
        """Remove a pod to make room for another.

        Args:
            victim: The pod that goes.
            winner: The pod that comes, None where a test only wants the victim's side of it.
        """
        who = f"pod {uid_of(winner)}" if winner else "a higher priority pod"
        text = f"Preempted by {who} on node {dig(victim, 'spec', 'nodeName', default='')}"
        status = clone(victim["status"])
        condition = {
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "PreemptionByScheduler",
            "message": "default-scheduler: preempting to accommodate a higher priority pod",
        }
        set_condition(status, condition)
        self._registry.write_status(POD, namespace_of(victim), name_of(victim), status, _SCHEDULER)
        self._recorder.normal(victim, "Preempted", text)
        delete(self._registry, POD, namespace_of(victim), name_of(victim), {}, _SCHEDULER)

    def _refuse(self, pod: Object, reasons: dict[str, list[str]]) -> None:
        message = _explanation(reasons)
        status = clone(pod["status"])
        condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
        set_condition(status, condition)
        self._registry.write_status(POD, namespace_of(pod), name_of(pod), status, _SCHEDULER)
        self._recorder.warning(pod, "FailedScheduling", message)
        if uid_of(pod) not in self._told:
            self._told.add(uid_of(pod))
            text = "pod didn't trigger scale-up: 1 max node group size reached"
            self._autoscaler.normal(pod, "NotTriggerScaleUp", text)


def _explanation(reasons: dict[str, list[str]]) -> str:
    """Sum up in the words of kube-scheduler: reasons counted over nodes, then what preemption would do."""
    total = len(reasons)
    if not total:
        return "no nodes available to schedule pods"
    counted = Counter(reason for why in reasons.values() for reason in why)
    listed = ", ".join(sorted(f"{count} {reason}" for reason, count in counted.items()))
    short = sum(1 for why in reasons.values() if is_resource_shortage(why))
    helpless = total - short
    outlook = []
    if short:
        outlook.append(f"{short} No preemption victims found for incoming pod")
    if helpless:
        outlook.append(f"{helpless} Preemption is not helpful for scheduling")
    return f"0/{total} nodes are available: {listed}. preemption: 0/{total} nodes are available: {', '.join(outlook)}."


def _is_waiting(pod: Object) -> bool:
    return (
        not dig(pod, "spec", "nodeName")
        and not is_deleting(pod)
        and not dig(pod, "spec", "schedulingGates")
        and dig(pod, "status", "phase") not in _FINISHED
    )


def _matters(change: Change) -> bool:
    """Tell a change that may make room on a node from a heartbeat."""
    if change.previous is None:
        return True
    before, after = change.previous, change.item
    return (
        before.get("spec") != after.get("spec")
        or before["metadata"].get("labels") != after["metadata"].get("labels")
        or dig(before, "status", "allocatable") != dig(after, "status", "allocatable")
    )
