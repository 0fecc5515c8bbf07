"""What makes a pod spec invalid, in the words of a real API server."""

from decimal import Decimal
from typing import Any

from streamway.sandbox.cluster.api.naming import check_dns_label, check_environment_name, check_port_name
from streamway.sandbox.cluster.api.quantities import parse_quantity
from streamway.sandbox.cluster.api.statuses import (
    Cause,
    duplicate,
    forbidden_field,
    invalid,
    required,
    unknown_reference,
    unsupported,
)
from streamway.sandbox.cluster.objects import Object, clone, every_container

_NATIVE_RESOURCES = ("cpu", "memory", "ephemeral-storage")
_PULL_POLICIES = ["Always", "IfNotPresent", "Never"]
_PROTOCOLS = ["SCTP", "TCP", "UDP"]
_HANDLERS = ("exec", "grpc", "httpGet", "tcpSocket")
_POSITIVE = ("failureThreshold", "periodSeconds", "successThreshold", "timeoutSeconds")


def check_pod_spec(spec: Object, path: str) -> list[Cause]:
    """Check a pod spec that stands at a path."""
    causes: list[Cause] = []
    if not spec.get("containers"):
        causes.append(required(f"{path}.containers"))
    volumes, more = _volumes(spec, f"{path}.volumes")
    causes += more
    names: set[str] = set()
    for field, index, container in every_container(spec):
        where = f"{path}.{field}[{index}]"
        causes += _container(
            container,
            where,
            volumes,
            sidecar=container.get("restartPolicy") == "Always",
            init=field == "initContainers",
        )
        if container.get("name") in names:
            causes.append(duplicate(f"{where}.name", container["name"]))
        names.add(container.get("name", ""))
    policy = spec.get("restartPolicy", "Always")
    if policy not in ("Always", "OnFailure", "Never"):
        causes.append(unsupported(f"{path}.restartPolicy", policy, ["Always", "Never", "OnFailure"]))
    if spec.get("terminationGracePeriodSeconds", 0) < 0:
        value = spec["terminationGracePeriodSeconds"]
        causes.append(invalid(f"{path}.terminationGracePeriodSeconds", value, "must be greater than or equal to 0"))
    return causes


def _volumes(spec: Object, path: str) -> tuple[set[str], list[Cause]]:
    names: set[str] = set()
    causes: list[Cause] = []
    for index, volume in enumerate(spec.get("volumes") or []):
        name = volume.get("name", "")
        causes += check_dns_label(f"{path}[{index}].name", name) if name else [required(f"{path}[{index}].name")]
        if name in names:
            causes.append(duplicate(f"{path}[{index}].name", name))
        names.add(name)
        if len(volume) > 2:
            causes.append(forbidden_field(f"{path}[{index}]", "may not specify more than 1 volume type"))
    return names, causes


def _container(container: Object, path: str, volumes: set[str], *, sidecar: bool, init: bool) -> list[Cause]:
    causes: list[Cause] = []
    name = container.get("name", "")
    causes += check_dns_label(f"{path}.name", name) if name else [required(f"{path}.name")]
    if not container.get("image"):
        causes.append(required(f"{path}.image"))
    policy = container.get("imagePullPolicy", "Always")
    if policy not in _PULL_POLICIES:
        causes.append(unsupported(f"{path}.imagePullPolicy", policy, _PULL_POLICIES))
    causes += _ports(container, path)
    causes += _environment(container, path)
    causes += _mounts(container, path, volumes)
    causes += check_resources(container.get("resources") or {}, f"{path}.resources")
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        if container.get(probe) is not None:
            if init and not sidecar:
                causes.append(
                    forbidden_field(
                        f"{path}.{probe}", "may not be set for init containers without restartPolicy=Always"
                    )
                )
            causes += _probe(container[probe], f"{path}.{probe}", once=probe != "readinessProbe")
    return causes


def _ports(container: Object, path: str) -> list[Cause]:
    causes: list[Cause] = []
    names: set[str] = set()
    for index, port in enumerate(container.get("ports") or []):
        where = f"{path}.ports[{index}]"
        number = port.get("containerPort", 0)
        if not 0 < number < 65536:
            causes.append(invalid(f"{where}.containerPort", number, "must be between 1 and 65535, inclusive"))
        if port.get("protocol", "TCP") not in _PROTOCOLS:
            causes.append(unsupported(f"{where}.protocol", port["protocol"], _PROTOCOLS))
        if name := port.get("name"):
            causes += check_port_name(f"{where}.name", name)
            if name in names:
                causes.append(duplicate(f"{where}.name", name))
            names.add(name)
    return causes


def _environment(container: Object, path: str) -> list[Cause]:
    causes: list[Cause] = []
    for index, variable in enumerate(container.get("env") or []):
        where = f"{path}.env[{index}]"
        name = variable.get("name", "")
        causes += check_environment_name(f"{where}.name", name) if name else [required(f"{where}.name")]
        if variable.get("valueFrom") is not None and variable.get("value"):
            causes.append(invalid(f"{where}.valueFrom", "", "may not be specified when `value` is not empty"))
    return causes


def _mounts(container: Object, path: str, volumes: set[str]) -> list[Cause]:
    causes: list[Cause] = []
    places: set[str] = set()
    for index, mount in enumerate(container.get("volumeMounts") or []):
        where = f"{path}.volumeMounts[{index}]"
        if mount.get("name") not in volumes:
            causes.append(unknown_reference(f"{where}.name", mount.get("name")))
        place = mount.get("mountPath", "")
        if not place:
            causes.append(required(f"{where}.mountPath"))
        if place in places:
            causes.append(invalid(f"{where}.mountPath", place, "must be unique"))
        places.add(place)
    return causes


def check_resources(resources: Object, path: str) -> list[Cause]:
    """Check a container's requests and limits."""
    causes: list[Cause] = []
    limits, more = _amounts(resources.get("limits") or {}, f"{path}.limits")
    causes += more
    requests, more = _amounts(resources.get("requests") or {}, f"{path}.requests")
    causes += more
    for name, amount in requests.items():
        if name in limits and amount > limits[name]:
            written = resources["requests"][name]
            note = f"must be less than or equal to {name} limit of {resources['limits'][name]}"
            causes.append(invalid(f"{path}.requests", written, note))
        elif name not in _NATIVE_RESOURCES and "/" in name and amount != limits.get(name):
            note = "Limit must be set for non overcommitable resources"
            causes.append(Cause(reason="FieldValueRequired", field=f"{path}.limits", message=f"Required value: {note}"))
    return causes


def _amounts(written: Object, path: str) -> tuple[dict[str, Decimal], list[Cause]]:
    amounts: dict[str, Decimal] = {}
    causes: list[Cause] = []
    for name, value in written.items():
        where = f"{path}[{name}]"
        try:
            amount = parse_quantity(value)
        except ValueError as error:
            causes.append(invalid(where, value, str(error)))
            continue
        if amount < 0:
            causes.append(invalid(where, value, "must be greater than or equal to 0"))
        if name not in _NATIVE_RESOURCES and "/" not in name and not name.startswith("hugepages-"):
            causes.append(invalid(where, name, "must be a standard resource type or fully qualified"))
        if "/" in name and amount != amount.to_integral_value():
            causes.append(invalid(where, value, "must be an integer"))
        amounts[name] = amount
    return amounts, causes


def _probe(probe: Object, path: str, *, once: bool) -> list[Cause]:
    causes: list[Cause] = []
    handlers = [name for name in _HANDLERS if probe.get(name) is not None]
    if not handlers:
        causes.append(required(path, "must specify a handler type"))
    causes += [forbidden_field(f"{path}.{extra}", "may not specify more than 1 handler type") for extra in handlers[1:]]
    causes += [
        invalid(f"{path}.{name}", probe[name], "must be greater than or equal to 1")
        for name in _POSITIVE
        if probe.get(name, 1) < 1
    ]
    if once and probe.get("successThreshold", 1) != 1:
        causes.append(invalid(f"{path}.successThreshold", probe["successThreshold"], "must be 1"))
    return causes


def check_pod_update(old: Object, new: Object) -> list[Cause]:
    """Refuse changes to a running pod's spec, except those Kubernetes allows."""
    if _fixed_part(old) == _fixed_part(new):
        return []
    note = (
        "pod updates may not change fields other than `spec.containers[*].image`,"
        "`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations`"
        " (only additions to existing tolerations),`spec.terminationGracePeriodSeconds`"
        " (allow it to be set to 1 if it was previously negative)"
    )
    return [forbidden_field("spec", note)]


def _fixed_part(pod: Object) -> Any:
    spec = clone(pod.get("spec") or {})
    for name in ("activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds"):
        spec.pop(name, None)
    for _, _, container in every_container(spec):
        container.pop("image", None)
        container.pop("imagePullPolicy", None)
    return spec
