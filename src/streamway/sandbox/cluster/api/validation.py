"""What makes an object invalid, in the words of a real API server: 422 with a cause for every wrong field."""

import re
from collections.abc import Callable
from typing import Any

from streamway.sandbox.cluster.api.batch_rules import check_cron_job, check_job
from streamway.sandbox.cluster.api.decoding import missing_fields
from streamway.sandbox.cluster.api.kinds import (
    AUTOSCALER,
    CONFIG_MAP,
    CRON_JOB,
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    JOB,
    POD,
    QUOTA,
    REPLICA_SET,
    ROLE_BINDING,
    SECRET,
    SERVICE,
    Kind,
)
from streamway.sandbox.cluster.api.naming import check_dns_label, check_labels, check_metadata, template_metadata
from streamway.sandbox.cluster.api.pod_rules import check_pod_spec, check_pod_update
from streamway.sandbox.cluster.api.quantities import parse_quantity
from streamway.sandbox.cluster.api.selectors import match_selector
from streamway.sandbox.cluster.api.statuses import (
    Cause,
    duplicate,
    forbidden_field,
    invalid,
    invalid_object,
    required,
    unsupported,
)
from streamway.sandbox.cluster.objects import Object, dig, name_of

_DATA_KEY = re.compile(r"^[-._a-zA-Z0-9]+$")
_PERCENT = re.compile(r"^\d+%$")
_SERVICE_TYPES = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]
_IMMUTABLE = "field is immutable"

Checker = Callable[[Object, Object | None], list[Cause]]


def validate(kind: Kind, item: Object, old: Object | None = None) -> None:
    """Refuse an object that is invalid.

    Args:
        kind: Its kind.
        item: The object, with defaults filled in.
        old: The object it replaces, None for a creation.

    Raises:
        ApiError: 422 with every cause.
    """
    causes = check_metadata(kind, item) if old is None else _metadata_update(item, old)
    causes += missing_fields(kind, item)
    if not causes:
        checker = _CHECKERS.get(kind)
        causes += checker(item, old) if checker is not None else []
    if causes:
        raise invalid_object(kind, name_of(item), causes)


def _metadata_update(item: Object, old: Object) -> list[Cause]:
    causes = check_labels("metadata.labels", dig(item, "metadata", "labels", default={}))
    if name_of(item) != name_of(old):
        causes.append(invalid("metadata.name", name_of(item), _IMMUTABLE))
    return causes


def _pod(item: Object, old: Object | None) -> list[Cause]:
    causes = check_pod_spec(item["spec"], "spec")
    return causes if old is None else causes + check_pod_update(old, item)


def _workload(item: Object, old: Object | None) -> list[Cause]:
    spec = item["spec"]
    causes: list[Cause] = []
    if spec.get("replicas", 0) < 0:
        causes.append(invalid("spec.replicas", spec["replicas"], "must be greater than or equal to 0"))
    causes += _selector(item)
    causes += check_labels("spec.template.labels", template_metadata(item).get("labels") or {})
    if not dig(spec, "template", "spec"):
        causes.append(required("spec.template.spec.containers"))
        return causes
    causes += check_pod_spec(spec["template"]["spec"], "spec.template.spec")
    policy = spec["template"]["spec"].get("restartPolicy", "Always")
    if policy != "Always":
        causes.append(unsupported("spec.template.spec.restartPolicy", policy, ["Always"]))
    if old is not None and dig(old, "spec", "selector") != spec.get("selector"):
        causes.append(invalid("spec.selector", spec.get("selector"), _IMMUTABLE))
    return causes


def _selector(item: Object) -> list[Cause]:
    selector = dig(item, "spec", "selector", default={})
    if not selector.get("matchLabels") and not selector.get("matchExpressions"):
        return [invalid("spec.selector", selector, "empty selector is invalid for deployment")]
    labels = template_metadata(item).get("labels") or {}
    if not match_selector(selector)(labels):
        note = "`selector` does not match template `labels`"
        return [invalid("spec.template.metadata.labels", labels, note)]
    return []


def _deployment(item: Object, old: Object | None) -> list[Cause]:
    causes = _workload(item, old)
    strategy = item["spec"].get("strategy") or {}
    kind, rolling = strategy.get("type"), strategy.get("rollingUpdate")
    if kind not in ("Recreate", "RollingUpdate"):
        causes.append(unsupported("spec.strategy.type", kind, ["Recreate", "RollingUpdate"]))
    if kind == "Recreate" and rolling is not None:
        note = "may not be specified when strategy `type` is 'Recreate'"
        causes.append(forbidden_field("spec.strategy.rollingUpdate", note))
    if kind == "RollingUpdate":
        causes += _rolling_update(rolling or {})
    deadline, ready = item["spec"].get("progressDeadlineSeconds"), item["spec"].get("minReadySeconds", 0)
    if deadline is not None and deadline <= ready:
        causes.append(invalid("spec.progressDeadlineSeconds", deadline, "must be greater than minReadySeconds"))
    return causes


def _rolling_update(rolling: Object) -> list[Cause]:
    path = "spec.strategy.rollingUpdate"
    causes = []
    for name in ("maxUnavailable", "maxSurge"):
        value = rolling.get(name, "25%")
        if isinstance(value, str) and not _PERCENT.match(value):
            note = (
                "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%',"
                " regex used for validation is '[0-9]+%')"
            )
            causes.append(invalid(f"{path}.{name}", value, note))
        elif isinstance(value, int) and value < 0:
            causes.append(invalid(f"{path}.{name}", value, "must be greater than or equal to 0"))
    if all(rolling.get(name) in (0, "0%") for name in ("maxUnavailable", "maxSurge")):
        note = "may not be 0 when `maxSurge` is 0"
        causes.append(invalid(f"{path}.maxUnavailable", rolling["maxUnavailable"], note))
    return causes


def _service(item: Object, old: Object | None) -> list[Cause]:
    spec = item["spec"]
    causes: list[Cause] = []
    if spec["type"] not in _SERVICE_TYPES:
        causes.append(unsupported("spec.type", spec["type"], _SERVICE_TYPES))
    ports = spec.get("ports") or []
    if not ports and spec["type"] != "ExternalName" and spec.get("clusterIP") != "None":
        causes.append(required("spec.ports"))
    causes += _service_ports(ports)
    causes += check_labels("spec.selector", spec.get("selector") or {})
    known = dig(old or {}, "spec", "clusterIP")
    if known and spec["type"] != "ExternalName" and spec.get("clusterIP") != known:
        causes.append(invalid("spec.clusterIPs[0]", [spec.get("clusterIP")], "may not change once set"))
    return causes


def _service_ports(ports: list[Any]) -> list[Cause]:
    causes: list[Cause] = []
    seen: set[Any] = set()
    for index, port in enumerate(ports):
        where = f"spec.ports[{index}]"
        if not 0 < port.get("port", 0) < 65536:
            causes.append(invalid(f"{where}.port", port.get("port"), "must be between 1 and 65535, inclusive"))
        if len(ports) > 1 and not port.get("name"):
            causes.append(required(f"{where}.name"))
        elif port.get("name"):
            causes += check_dns_label(f"{where}.name", port["name"])
        for value in (("name", port.get("name")), ("number", (port.get("port"), port.get("protocol")))):
            if value[1] and value in seen:
                causes.append(duplicate(f"{where}{'.name' if value[0] == 'name' else ''}", port.get("name")))
            seen.add(value)
    return causes


def _secret_or_config(item: Object, old: Object | None) -> list[Cause]:
    causes = [
        invalid(f"data[{key}]", key, "a valid config key must consist of alphanumeric characters, '-', '_' or '.'")
        for key in item.get("data") or {}
        if not _DATA_KEY.match(key)
    ]
    if old is None:
        return causes
    if old.get("type") != item.get("type"):
        causes.append(invalid("type", item.get("type"), _IMMUTABLE))
    if old.get("immutable") and any(old.get(key) != item.get(key) for key in ("data", "binaryData", "immutable")):
        causes.append(forbidden_field("data", "field is immutable when `immutable` is set"))
    return causes


def _disruption_budget(item: Object, old: Object | None) -> list[Cause]:
    spec = item.get("spec") or {}
    if spec.get("minAvailable") is not None and spec.get("maxUnavailable") is not None:
        return [invalid("spec", "", "minAvailable and maxUnavailable cannot be both set")]
    return []


def _autoscaler(item: Object, old: Object | None) -> list[Cause]:
    spec = item["spec"]
    if spec.get("maxReplicas", 0) < 1:
        return [invalid("spec.maxReplicas", spec.get("maxReplicas", 0), "must be greater than 0")]
    if spec["maxReplicas"] < spec.get("minReplicas", 1):
        note = "must be greater than or equal to `minReplicas`"
        return [invalid("spec.maxReplicas", spec["maxReplicas"], note)]
    return []


def _quota(item: Object, old: Object | None) -> list[Cause]:
    causes = []
    for name, value in dig(item, "spec", "hard", default={}).items():
        try:
            parse_quantity(value)
        except ValueError as error:
            causes.append(invalid(f"spec.hard[{name}]", value, str(error)))
    return causes


def _role_binding(item: Object, old: Object | None) -> list[Cause]:
    if old is not None and old.get("roleRef") != item.get("roleRef"):
        return [invalid("roleRef", item.get("roleRef"), "cannot change roleRef")]
    return []


_CHECKERS: dict[Kind, Checker] = {
    AUTOSCALER: _autoscaler,
    CONFIG_MAP: _secret_or_config,
    CRON_JOB: check_cron_job,
    DEPLOYMENT: _deployment,
    DISRUPTION_BUDGET: _disruption_budget,
    JOB: check_job,
    POD: _pod,
    QUOTA: _quota,
    REPLICA_SET: _workload,
    ROLE_BINDING: _role_binding,
    SECRET: _secret_or_config,
    SERVICE: _service,
}
