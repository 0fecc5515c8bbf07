"""The columns that `kubectl get` shows of each kind, as a real API server prints them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from streamway.sandbox.cluster.api.batch_columns import (
    CRON_JOB_COLUMNS,
    JOB_COLUMNS,
    cron_job_cells,
    job_cells,
)
from streamway.sandbox.cluster.api.kinds import (
    AUTOSCALER,
    CLAIM,
    CONFIG_MAP,
    CRON_JOB,
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    ENDPOINT_SLICE,
    ENDPOINTS,
    EVENT,
    JOB,
    LEASE,
    NAMESPACE,
    NEW_EVENT,
    NODE,
    POD,
    QUOTA,
    REPLICA_SET,
    SECRET,
    SERVICE,
    SERVICE_ACCOUNT,
    Kind,
)
from streamway.sandbox.cluster.api.pod_columns import POD_COLUMNS, pod_cells
from streamway.sandbox.cluster.objects import (
    Object,
    age_seconds,
    condition_of,
    dig,
    labels_of,
    name_of,
)


@dataclass(frozen=True, kw_only=True)
class Columns:
    """What is shown of a kind.

    Args:
        headers: The columns; a name that starts with "+" is shown only with -o wide.
        cells: Gives an object's cells, in the order of the columns.
    """

    headers: Sequence[str]
    cells: Callable[[Object], list[Any]]


def human_duration(seconds: float) -> str:
    """Write a duration as kubectl does: two units at most, the fewer the longer."""
    total = max(0, int(seconds))
    minutes, hours, days = total // 60, total // 3600, total // 86400
    if total < 120:
        return f"{total}s"
    if minutes < 10:
        return f"{minutes}m{total % 60}s" if total % 60 else f"{minutes}m"
    if hours < 3:
        return f"{minutes}m"
    if hours < 8:
        return f"{hours}h{minutes % 60}m" if minutes % 60 else f"{hours}h"
    if days < 2:
        return f"{hours}h"
    if days < 8:
        return f"{days}d{hours % 24}h" if hours % 24 else f"{days}d"
    return f"{days}d"


def age(item: Object) -> str:
    """Write an object's age."""
    created = dig(item, "metadata", "creationTimestamp")
    return human_duration(age_seconds(created)) if created else "<unknown>"


def columns_of(kind: Kind) -> Columns:
    """Give what is shown of a kind."""
    return _COLUMNS.get(kind, _PLAIN)


def _containers(item: Object) -> tuple[str, str]:
    containers = dig(item, "spec", "template", "spec", "containers", default=[])
    return ",".join(c["name"] for c in containers), ",".join(c.get("image", "") for c in containers)


def _selector(selector: Object | None) -> str:
    if not selector:
        return "<none>"
    pairs = [f"{key}={value}" for key, value in sorted((selector.get("matchLabels") or {}).items())]
    pairs += [
        f"{one['key']} {one['operator'].lower()} ({','.join(one.get('values') or [])})"
        for one in selector.get("matchExpressions") or []
    ]
    return ",".join(pairs) or "<none>"


def _deployment(item: Object) -> list[Any]:
    status = item.get("status") or {}
    ready = f"{status.get('readyReplicas', 0)}/{dig(item, 'spec', 'replicas', default=0)}"
    updated, available = status.get("updatedReplicas", 0), status.get("availableReplicas", 0)
    selector = _selector(dig(item, "spec", "selector"))
    return [name_of(item), ready, updated, available, age(item), *_containers(item), selector]


def _replica_set(item: Object) -> list[Any]:
    status = item.get("status") or {}
    counts = [dig(item, "spec", "replicas", default=0), status.get("replicas", 0), status.get("readyReplicas", 0)]
    return [name_of(item), *counts, age(item), *_containers(item), _selector(dig(item, "spec", "selector"))]


def _service(item: Object) -> list[Any]:
    spec = item["spec"]
    ports = ",".join(
        f"{port['port']}{':' + str(port['nodePort']) if port.get('nodePort') else ''}/{port.get('protocol', 'TCP')}"
        for port in spec.get("ports") or []
    )
    external = "<pending>" if spec.get("type") == "LoadBalancer" else spec.get("externalName") or "<none>"
    selector = ",".join(f"{key}={value}" for key, value in sorted((spec.get("selector") or {}).items()))
    address = spec.get("clusterIP") or "<none>"
    return [name_of(item), spec.get("type"), address, external, ports or "<none>", age(item), selector or "<none>"]


def _node(item: Object) -> list[Any]:
    ready = condition_of(item, "Ready") or {}
    state = "Ready" if ready.get("status") == "True" else "NotReady"
    if dig(item, "spec", "unschedulable"):
        state += ",SchedulingDisabled"
    prefix = "node-role.kubernetes.io/"
    roles = ",".join(sorted(key.removeprefix(prefix) for key in labels_of(item) if key.startswith(prefix)))
    info = dig(item, "status", "nodeInfo", default={})
    addresses = {one["type"]: one["address"] for one in dig(item, "status", "addresses", default=[])}
    return [
        name_of(item),
        state,
        roles or "<none>",
        age(item),
        info.get("kubeletVersion", ""),
        addresses.get("InternalIP", "<none>"),
        addresses.get("ExternalIP", "<none>"),
        info.get("osImage", ""),
        info.get("kernelVersion", ""),
        info.get("containerRuntimeVersion", ""),
    ]


def _event(item: Object) -> list[Any]:
    involved = item.get("involvedObject") or item.get("regarding") or {}
    last = item.get("lastTimestamp") or item.get("eventTime") or dig(item, "metadata", "creationTimestamp")
    first = item.get("firstTimestamp") or last
    source = dig(item, "source", "component") or item.get("reportingComponent") or ""
    host = dig(item, "source", "host")
    return [
        human_duration(age_seconds(last)),
        item.get("type", ""),
        item.get("reason", ""),
        f"{str(involved.get('kind', '')).lower()}/{involved.get('name', '')}",
        involved.get("fieldPath", ""),
        f"{source}, {host}" if host else source,
        str(item.get("message") or item.get("note") or "").strip(),
        human_duration(age_seconds(first)),
        item.get("count", 1),
        name_of(item),
    ]


def _endpoints(item: Object) -> list[Any]:
    found = [
        f"{address['ip']}:{port['port']}"
        for subset in item.get("subsets") or []
        for port in subset.get("ports") or []
        for address in subset.get("addresses") or []
    ]
    return [name_of(item), ",".join(found) or "<none>", age(item)]


def _endpoint_slice(item: Object) -> list[Any]:
    ports = ",".join(str(port.get("port")) for port in item.get("ports") or []) or "<unset>"
    found = [ip for endpoint in item.get("endpoints") or [] for ip in endpoint.get("addresses") or []]
    return [name_of(item), item.get("addressType"), ports, ",".join(found) or "<unset>", age(item)]


def _quota(item: Object) -> list[Any]:
    hard, used = dig(item, "status", "hard", default={}), dig(item, "status", "used", default={})
    pairs = {name: f"{name}: {used.get(name, 0)}/{limit}" for name, limit in sorted(hard.items())}
    requests = ", ".join(text for name, text in pairs.items() if not name.startswith("limits."))
    limits = ", ".join(text for name, text in pairs.items() if name.startswith("limits."))
    return [name_of(item), requests, limits, age(item)]


def _budget(item: Object) -> list[Any]:
    spec = item.get("spec") or {}
    allowed = dig(item, "status", "disruptionsAllowed", default=0)
    return [name_of(item), spec.get("minAvailable", "N/A"), spec.get("maxUnavailable", "N/A"), allowed, age(item)]


def _autoscaler(item: Object) -> list[Any]:
    spec, target = item["spec"], dig(item, "spec", "scaleTargetRef", default={})
    current = dig(item, "status", "currentReplicas", default=0)
    reference = f"{target.get('kind')}/{target.get('name')}"
    bounds = [spec.get("minReplicas"), spec.get("maxReplicas")]
    return [name_of(item), reference, "<unknown>", *bounds, current, age(item)]


def _claim(item: Object) -> list[Any]:
    spec, status = item["spec"], item.get("status") or {}
    modes = ",".join(
        {"ReadWriteOnce": "RWO", "ReadOnlyMany": "ROX", "ReadWriteMany": "RWX"}.get(one, one)
        for one in spec.get("accessModes") or []
    )
    capacity = dig(status, "capacity", "storage", default="")
    storage_class = spec.get("storageClassName", "")
    return [
        name_of(item),
        status.get("phase"),
        spec.get("volumeName", ""),
        capacity,
        modes,
        storage_class,
        "<unset>",
        age(item),
        spec.get("volumeMode", "Filesystem"),
    ]


_PLAIN = Columns(headers=("Name", "Age"), cells=lambda item: [name_of(item), age(item)])
_EVENT_COLUMNS = Columns(
    headers=(
        "Last Seen",
        "Type",
        "Reason",
        "Object",
        "+Subobject",
        "+Source",
        "Message",
        "+First Seen",
        "+Count",
        "+Name",
    ),
    cells=_event,
)
_COLUMNS: dict[Kind, Columns] = {
    AUTOSCALER: Columns(
        headers=("Name", "Reference", "Targets", "MinPods", "MaxPods", "Replicas", "Age"), cells=_autoscaler
    ),
    CLAIM: Columns(
        headers=(
            "Name",
            "Status",
            "Volume",
            "Capacity",
            "Access Modes",
            "StorageClass",
            "VolumeAttributesClass",
            "Age",
            "+VolumeMode",
        ),
        cells=_claim,
    ),
    CONFIG_MAP: Columns(
        headers=("Name", "Data", "Age"),
        cells=lambda item: [name_of(item), len(item.get("data") or {}) + len(item.get("binaryData") or {}), age(item)],
    ),
    CRON_JOB: Columns(headers=CRON_JOB_COLUMNS, cells=lambda item: cron_job_cells(item, human_duration)),
    DEPLOYMENT: Columns(
        headers=("Name", "Ready", "Up-to-date", "Available", "Age", "+Containers", "+Images", "+Selector"),
        cells=_deployment,
    ),
    DISRUPTION_BUDGET: Columns(
        headers=("Name", "Min Available", "Max Unavailable", "Allowed Disruptions", "Age"), cells=_budget
    ),
    ENDPOINTS: Columns(headers=("Name", "Endpoints", "Age"), cells=_endpoints),
    ENDPOINT_SLICE: Columns(headers=("Name", "AddressType", "Ports", "Endpoints", "Age"), cells=_endpoint_slice),
    EVENT: _EVENT_COLUMNS,
    NEW_EVENT: _EVENT_COLUMNS,
    JOB: Columns(headers=JOB_COLUMNS, cells=lambda item: job_cells(item, human_duration)),
    LEASE: Columns(
        headers=("Name", "Holder", "Age"),
        cells=lambda item: [name_of(item), dig(item, "spec", "holderIdentity", default=""), age(item)],
    ),
    NAMESPACE: Columns(
        headers=("Name", "Status", "Age"),
        cells=lambda item: [name_of(item), dig(item, "status", "phase"), age(item)],
    ),
    NODE: Columns(
        headers=(
            "Name",
            "Status",
            "Roles",
            "Age",
            "Version",
            "+Internal-IP",
            "+External-IP",
            "+OS-Image",
            "+Kernel-Version",
            "+Container-Runtime",
        ),
        cells=_node,
    ),
    POD: Columns(headers=POD_COLUMNS, cells=lambda item: [*pod_cells(item, human_duration), *_pod_tail(item)]),
    QUOTA: Columns(headers=("Name", "Request", "Limit", "Age"), cells=_quota),
    REPLICA_SET: Columns(
        headers=("Name", "Desired", "Current", "Ready", "Age", "+Containers", "+Images", "+Selector"),
        cells=_replica_set,
    ),
    SECRET: Columns(
        headers=("Name", "Type", "Data", "Age"),
        cells=lambda item: [name_of(item), item.get("type"), len(item.get("data") or {}), age(item)],
    ),
    SERVICE: Columns(
        headers=("Name", "Type", "Cluster-IP", "External-IP", "Port(s)", "Age", "+Selector"), cells=_service
    ),
    SERVICE_ACCOUNT: Columns(
        headers=("Name", "Secrets", "Age"),
        cells=lambda item: [name_of(item), len(item.get("secrets") or []), age(item)],
    ),
}


def _pod_tail(item: Object) -> list[Any]:
    status = item.get("status") or {}
    node = dig(item, "spec", "nodeName", default="<none>")
    return [age(item), status.get("podIP") or "<none>", node, status.get("nominatedNodeName") or "<none>", "<none>"]
