"""Whether a pod fits on a node, and the scheduler's words where it does not."""

from decimal import Decimal

from streamway.sandbox.cluster.api.quantities import parse_quantity
from streamway.sandbox.cluster.api.quota import pod_amounts
from streamway.sandbox.cluster.objects import Object, dig, labels_of, name_of

_UNSCHEDULABLE = "node.kubernetes.io/unschedulable"
_HARD_EFFECTS = ("NoSchedule", "NoExecute")


def misfits(pod: Object, node: Object, used: dict[str, Decimal]) -> list[str]:
    """Say why a pod cannot run on a node, in the scheduler's words; empty when it can.

    Args:
        pod: The pod.
        node: The node.
        used: What the pods there request already, with "pods" as their number.
    """
    taint = _untolerated(pod, node)
    if dig(node, "spec", "unschedulable") and not _tolerates(pod, {"key": _UNSCHEDULABLE, "effect": "NoSchedule"}):
        return ["node(s) were unschedulable"]
    if taint is not None:
        return [f"node(s) had untolerated taint {{{taint['key']}: {taint.get('value', '')}}}"]
    if not _is_selected(pod, node):
        return ["node(s) didn't match Pod's node affinity/selector"]
    return _lacking(pod, node, used)


def is_resource_shortage(reasons: list[str]) -> bool:
    """Tell whether removing other pods could make room."""
    return any(reason.startswith(("Insufficient", "Too many pods")) for reason in reasons)


def _untolerated(pod: Object, node: Object) -> Object | None:
    for taint in dig(node, "spec", "taints", default=[]):
        if taint["effect"] in _HARD_EFFECTS and taint["key"] != _UNSCHEDULABLE and not _tolerates(pod, taint):
            found: Object = taint
            return found
    return None


def _tolerates(pod: Object, taint: Object) -> bool:
    for toleration in dig(pod, "spec", "tolerations", default=[]):
        if toleration.get("effect") not in (None, "", taint["effect"]):
            continue
        if toleration.get("key") not in (None, "", taint["key"]):
            continue
        if toleration.get("operator", "Equal") == "Exists" or toleration.get("value", "") == taint.get("value", ""):
            return True
    return False


def _is_selected(pod: Object, node: Object) -> bool:
    labels = labels_of(node)
    if not dig(pod, "spec", "nodeSelector", default={}).items() <= labels.items():
        return False
    affinity = dig(
        pod, "spec", "affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution", default={}
    )
    terms = affinity.get("nodeSelectorTerms") or []
    return not terms or any(_matches_term(term, node) for term in terms)


def _matches_term(term: Object, node: Object) -> bool:
    fields = {"metadata.name": name_of(node)}
    return all(_matches(one, labels_of(node)) for one in term.get("matchExpressions") or []) and all(
        _matches(one, fields) for one in term.get("matchFields") or []
    )


def _matches(expression: Object, labels: dict[str, str]) -> bool:
    found, values = labels.get(expression["key"]), expression.get("values") or []
    operator = expression["operator"]
    if operator == "In":
        return found in values
    if operator == "NotIn":
        return found not in values
    if operator == "Exists":
        return found is not None
    if operator == "DoesNotExist":
        return found is None
    if found is None or not found.lstrip("-").isdigit():
        return False
    return int(found) > int(values[0]) if operator == "Gt" else int(found) < int(values[0])


def _lacking(pod: Object, node: Object, used: dict[str, Decimal]) -> list[str]:
    room = {name: parse_quantity(text) for name, text in dig(node, "status", "allocatable", default={}).items()}
    reasons = []
    if used.get("pods", Decimal(0)) + 1 > room.get("pods", Decimal(0)):
        reasons.append("Too many pods")
    for name, amount in sorted(pod_amounts(pod, "requests").items()):
        if amount and used.get(name, Decimal(0)) + amount > room.get(name, Decimal(0)):
            reasons.append(f"Insufficient {name}")
    return reasons
