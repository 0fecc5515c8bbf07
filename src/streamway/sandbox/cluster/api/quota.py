"""ResourceQuota, enforced as by a real API server: what is used, what is asked for, and the refusal."""

from collections.abc import Iterable
from decimal import Decimal

from streamway.sandbox.cluster.api.kinds import CLAIM, POD, QUOTA, SERVICE, Kind
from streamway.sandbox.cluster.api.quantities import format_quantity, parse_quantity
from streamway.sandbox.cluster.api.statuses import forbidden
from streamway.sandbox.cluster.api.store import Store
from streamway.sandbox.cluster.objects import Object, dig, every_container, name_of

Amounts = dict[str, Decimal]

_FINISHED = ("Succeeded", "Failed")


def pod_amounts(pod: Object, field: str) -> Amounts:
    """Add up what a pod's containers request or are limited to.

    Args:
        pod: The pod.
        field: requests or limits.
    """
    total: Amounts = {}
    first: Amounts = {}
    for group, _, container in every_container(pod["spec"]):
        for name, text in dig(container, "resources", field, default={}).items():
            amount = parse_quantity(text)
            if group == "containers" or container.get("restartPolicy") == "Always":
                total[name] = total.get(name, Decimal(0)) + amount
            else:
                first[name] = max(first.get(name, Decimal(0)), amount)
    return {name: max(total.get(name, Decimal(0)), first.get(name, Decimal(0))) for name in total.keys() | first.keys()}


def _charge(kind: Kind, item: Object) -> Amounts:
    """Tell what an object counts for, in the names that quotas use."""
    one = Decimal(1)
    charge: Amounts = {f"count/{kind.group_resource}": one}
    if not kind.group:
        charge[kind.plural] = one
    if kind is POD:
        requests, limits = pod_amounts(item, "requests"), pod_amounts(item, "limits")
        charge |= {f"requests.{name}": amount for name, amount in requests.items()}
        charge |= {f"limits.{name}": amount for name, amount in limits.items()}
        charge |= {name: amount for name, amount in requests.items() if "/" not in name}
    if kind is SERVICE and dig(item, "spec", "type") == "LoadBalancer":
        charge["services.loadbalancers"] = one
    if kind is CLAIM:
        charge["requests.storage"] = parse_quantity(dig(item, "spec", "resources", "requests", "storage", default=0))
    return charge


def quota_usage(store: Store, quota: Object) -> Amounts:
    """Tell how much of a quota is used."""
    hard = dig(quota, "spec", "hard", default={})
    used = dict.fromkeys(hard, Decimal(0))
    for kind, item in store.every_object():
        if dig(item, "metadata", "namespace") != quota["metadata"]["namespace"]:
            continue
        if kind is POD and dig(item, "status", "phase") in _FINISHED:
            continue
        charge = _charge(kind, item)
        for name in hard:
            used[name] += charge.get(name, Decimal(0))
    return used


def check_quota(store: Store, kind: Kind, namespace: str, item: Object) -> None:
    """Refuse an object that a quota has no room for.

    Raises:
        ApiError: 403, naming the quota, what was asked for, used and allowed.
    """
    for quota in store.items(QUOTA, namespace):
        hard = {name: parse_quantity(text) for name, text in dig(quota, "spec", "hard", default={}).items()}
        charge = _charge(kind, item)
        if kind is POD:
            _check_specified(kind, quota, item, hard)
        if not any(charge.get(name) for name in hard):
            continue
        used = quota_usage(store, quota)
        over = [name for name in sorted(hard) if charge.get(name) and used[name] + charge[name] > hard[name]]
        if over:
            why = (
                f"exceeded quota: {name_of(quota)}, requested: {_listed(over, charge)},"
                f" used: {_listed(over, used)}, limited: {_listed(over, hard)}"
            )
            raise forbidden(kind, name_of(item), why)


def _check_specified(kind: Kind, quota: Object, pod: Object, hard: Iterable[str]) -> None:
    """Compute resources under quota must be stated by every container."""
    lacking = []
    for name in sorted(hard):
        field, _, resource = name.partition(".") if "." in name else ("requests", "", name)
        if resource not in ("cpu", "memory") or field not in ("requests", "limits"):
            continue
        without = [
            container["name"]
            for _, _, container in every_container(pod["spec"])
            if resource not in dig(container, "resources", field, default={})
        ]
        if without:
            lacking.append(f"{name} for: {','.join(without)}")
    if lacking:
        raise forbidden(kind, name_of(pod), f"failed quota: {name_of(quota)}: must specify {'; '.join(lacking)}")


def _listed(names: list[str], amounts: Amounts) -> str:
    return ",".join(f"{name}={format_quantity(amounts[name], name)}" for name in names)
