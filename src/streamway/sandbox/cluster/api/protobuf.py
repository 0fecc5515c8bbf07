"""Objects that arrive as protobuf, which is how kubectl's own generators (`kubectl create namespace`, `kubectl auth
can-i`) send them. Answers are always JSON, which every client takes.

The format is Kubernetes' own: four magic bytes, then a runtime.Unknown that names the kind and holds the object:
https://kubernetes.io/docs/reference/using-api/api-concepts/#protobuf-encoding. What a field's type is follows from the
OpenAPI definitions; only its number has to be known besides, and is given below for the kinds that kubectl generates.
"""

import base64
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from streamway.sandbox.cluster.api.schema import Node
from streamway.sandbox.cluster.api.statuses import ApiError
from streamway.sandbox.cluster.objects import Object, timestamp

MAGIC = b"k8s\0"

# Field names in the order of their numbers, from 1; "_" for a number that is not used.
_NUMBERS = {
    "ObjectMeta": "name generateName namespace selfLink uid resourceVersion generation creationTimestamp"
    " deletionTimestamp deletionGracePeriodSeconds labels annotations ownerReferences finalizers _ _ managedFields",
    "OwnerReference": "kind _ name uid apiVersion controller blockOwnerDeletion",
    "ConfigMap": "metadata data binaryData immutable",
    "Secret": "metadata data type stringData immutable",
    "Namespace": "metadata spec status",
    "NamespaceSpec": "finalizers",
    "ServiceAccount": "metadata secrets imagePullSecrets automountServiceAccountToken",
    "Service": "metadata spec status",
    "ServiceSpec": "ports selector clusterIP type externalIPs _ sessionAffinity loadBalancerIP"
    " loadBalancerSourceRanges externalName externalTrafficPolicy healthCheckNodePort publishNotReadyAddresses",
    "ServicePort": "name protocol port targetPort nodePort appProtocol",
    "Deployment": "metadata spec status",
    "DeploymentSpec": "replicas selector template strategy minReadySeconds revisionHistoryLimit paused _"
    " progressDeadlineSeconds",
    "DeploymentStrategy": "type rollingUpdate",
    "RollingUpdateDeployment": "maxUnavailable maxSurge",
    "LabelSelector": "matchLabels matchExpressions",
    "LabelSelectorRequirement": "key operator values",
    "PodTemplateSpec": "metadata spec",
    "PodSpec": "volumes containers restartPolicy terminationGracePeriodSeconds activeDeadlineSeconds dnsPolicy"
    " nodeSelector serviceAccountName serviceAccount nodeName hostNetwork hostPID hostIPC securityContext"
    " imagePullSecrets hostname subdomain affinity schedulerName initContainers _ tolerations hostAliases"
    " priorityClassName priority dnsConfig shareProcessNamespace readinessGates runtimeClassName enableServiceLinks"
    " preemptionPolicy",
    "Container": "name image command args workingDir ports env resources volumeMounts livenessProbe readinessProbe"
    " lifecycle terminationMessagePath imagePullPolicy securityContext stdin stdinOnce tty envFrom"
    " terminationMessagePolicy volumeDevices startupProbe",
    "ContainerPort": "name hostPort containerPort protocol hostIP",
    "EnvVar": "name value",
    "ResourceRequirements": "limits requests",
    "PolicyRule": "verbs apiGroups resources resourceNames nonResourceURLs",
    "Role": "metadata rules",
    "ClusterRole": "metadata rules",
    "RoleBinding": "metadata subjects roleRef",
    "ClusterRoleBinding": "metadata subjects roleRef",
    "Subject": "kind apiGroup name namespace",
    "RoleRef": "apiGroup kind name",
    "ResourceQuota": "metadata spec status",
    "ResourceQuotaSpec": "hard scopes",
    "PodDisruptionBudget": "metadata spec status",
    "PodDisruptionBudgetSpec": "minAvailable selector maxUnavailable",
    "PriorityClass": "metadata value globalDefault description preemptionPolicy",
    "SelfSubjectAccessReview": "metadata spec status",
    "SelfSubjectAccessReviewSpec": "resourceAttributes nonResourceAttributes",
    "ResourceAttributes": "namespace verb group version resource subresource name",
    "NonResourceAttributes": "path verb",
    "SelfSubjectRulesReview": "metadata spec status",
    "SelfSubjectRulesReviewSpec": "namespace",
    "SelfSubjectReview": "metadata status",
    "TokenRequest": "metadata spec status",
    "TokenRequestSpec": "audiences _ boundObjectRef expirationSeconds",
    "Eviction": "metadata deleteOptions",
    "DeleteOptions": "gracePeriodSeconds preconditions orphanDependents propagationPolicy dryRun",
    "Preconditions": "uid resourceVersion",
}

# Numbers and booleans that mean something when they are zero; others are sent although nobody set them.
_ZERO_COUNTS = frozenset(
    ("automountServiceAccountToken", "expirationSeconds", "gracePeriodSeconds", "replicas", "value")
)
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def kind_of(content: bytes) -> str:
    """Read the kind that the envelope names."""
    types = next((_raw(value) for number, value in _fields(content[4:]) if number == 1), b"")
    return next((_raw(value).decode() for number, value in _fields(types) if number == 2), "")


def unwrap(content: bytes) -> bytes:
    """Take the object out of its envelope.

    Raises:
        ApiError: 400 for anything else.
    """
    if not content.startswith(MAGIC):
        raise ApiError(400, "BadRequest", "provided data does not appear to be a protobuf message", {})
    return next((value for number, value in _fields(content[4:]) if number == 2 and isinstance(value, bytes)), b"")


def read_message(content: bytes, node: Node) -> Object:
    """Read a message as the JSON object it stands for.

    Args:
        content: The message.
        node: The type of the object.

    Raises:
        ApiError: 415 for a type or field whose number is not known here.
    """
    name = node.name.rpartition(".")[2]
    names = _NUMBERS.get(name, "").split()
    item: Object = {}
    for number, value in _fields(content):
        field = names[number - 1] if 0 < number <= len(names) else "_"
        child = node.child(field)
        if field == "status":
            # Generators send empty statuses along; nobody can set one through them.
            continue
        if child is None:
            text = f"field {number} of {name} is not known in the format application/vnd.kubernetes.protobuf: use JSON"
            raise ApiError(415, "UnsupportedMediaType", text, {})
        _put(item, field, value, child)
    return item


def _put(item: Object, field: str, value: int | bytes, node: Node) -> None:
    if node.shape == "list":
        item.setdefault(field, []).append(_value(value, node.item))
    elif node.shape == "map":
        entry = dict(_fields(_raw(value)))
        child = node.child("")
        assert child is not None, "a map has a type for its values"
        item.setdefault(field, {})[_raw(entry.get(1, b"")).decode()] = _value(entry.get(2, b""), child)
    else:
        read = _value(value, node)
        if read is not None and (read or isinstance(read, dict) or field in _ZERO_COUNTS):
            item[field] = read


def _value(value: int | bytes, node: Node) -> Any:
    if node.shape == "struct":
        return read_message(_raw(value), node)
    if node.scalar_type == "quantity":
        return _raw(dict(_fields(_raw(value))).get(1, b"")).decode()
    if node.scalar_type == "int-or-string":
        parts = dict(_fields(_raw(value)))
        return _raw(parts.get(3, b"")).decode() if parts.get(1) else _signed(parts.get(2, 0))
    if node.name.endswith("Time"):
        seconds = _signed(dict(_fields(_raw(value))).get(1, 0))
        return timestamp(datetime.fromtimestamp(seconds, UTC)) if seconds else None
    if node.raw.get("format") == "byte":
        return base64.b64encode(_raw(value)).decode()
    if isinstance(value, bytes):
        return value.decode()
    return bool(value) if node.scalar_type == "boolean" else _signed(value)


def _raw(value: int | bytes) -> bytes:
    return value if isinstance(value, bytes) else b""


def _signed(value: int | bytes) -> int:
    number = value if isinstance(value, int) else 0
    return number - (1 << 64) if number >= 1 << 63 else number


def _fields(content: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Go through a message's fields: their numbers with their numbers or bytes.

    Raises:
        ApiError: 400 for a message that is cut off or malformed.
    """
    place = 0
    try:
        while place < len(content):
            tag, place = _varint(content, place)
            kind = tag & 7
            if kind == _VARINT:
                value, place = _varint(content, place)
                yield tag >> 3, value
                continue
            if kind == _BYTES:
                length, place = _varint(content, place)
            else:
                length = {_FIXED64: 8, _FIXED32: 4}[kind]
            if place + length > len(content):
                raise IndexError("cut off")
            yield tag >> 3, content[place : place + length]
            place += length
    except (IndexError, KeyError) as error:
        raise ApiError(400, "BadRequest", f"the protobuf message is malformed: {error}", {}) from error


def _varint(content: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
        shift += 7
