"""Endpoints and EndpointSlices: which pods stand behind a Service now."""

from collections.abc import Iterable

from streamway.sandbox.cluster.api.deletion import delete
from streamway.sandbox.cluster.api.kinds import ENDPOINT_SLICE, ENDPOINTS, POD, SERVICE
from streamway.sandbox.cluster.api.registry import Registry
from streamway.sandbox.cluster.api.selectors import match_labels
from streamway.sandbox.cluster.api.store import Change
from streamway.sandbox.cluster.control.loop import Key
from streamway.sandbox.cluster.control.owned import CONTROLLER, owner_reference
from streamway.sandbox.cluster.control.replicasets import is_ready
from streamway.sandbox.cluster.objects import (
    Object,
    clone,
    dig,
    is_deleting,
    labels_of,
    name_of,
    namespace_of,
    uid_of,
)

_FINISHED = ("Succeeded", "Failed")
_SERVICE_NAME = "kubernetes.io/service-name"
_MANAGED_BY = "endpointslice.kubernetes.io/managed-by"


class EndpointsController:
    """Keeps Endpoints and one EndpointSlice for each Service that has a selector.

    Args:
        registry: The cluster's objects.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def keys_for(self, change: Change) -> Iterable[Key]:
        """React to Services, and to pods that match one before or after a change."""
        if change.kind in (SERVICE, ENDPOINTS):
            yield namespace_of(change.item), name_of(change.item)
        elif change.kind is POD:
            sides = [item for item in (change.item, change.previous) if item is not None]
            for service in self._registry.store.items(SERVICE, namespace_of(change.item)):
                matches = match_labels(dig(service, "spec", "selector", default={}))
                if any(matches(labels_of(side)) for side in sides):
                    yield namespace_of(service), name_of(service)

    def reconcile(self, key: Key) -> float | None:
        """Write down the pods behind a Service."""
        service = self._registry.store.get(SERVICE, *key)
        if service is None:
            if self._registry.store.get(ENDPOINTS, *key) is not None:
                delete(self._registry, ENDPOINTS, *key, {}, CONTROLLER)
            return None
        if is_deleting(service) or not dig(service, "spec", "selector"):
            return None
        pods = self._pods(service)
        self._write_endpoints(service, pods)
        self._write_slice(service, pods)
        return None

    def _pods(self, service: Object) -> list[Object]:
        matches = match_labels(service["spec"]["selector"])
        return [
            pod
            for pod in self._registry.store.items(POD, namespace_of(service))
            if matches(labels_of(pod)) and dig(pod, "status", "podIP") and dig(pod, "status", "phase") not in _FINISHED
        ]

    def _write_endpoints(self, service: Object, pods: list[Object]) -> None:
        groups: dict[tuple[tuple[str, int, str], ...], dict[str, list[Object]]] = {}
        for pod in pods:
            if is_deleting(pod):
                continue
            ready = is_ready(pod) or bool(dig(service, "spec", "publishNotReadyAddresses"))
            group = groups.setdefault(tuple(_ports(service, pod)), {})
            group.setdefault("addresses" if ready else "notReadyAddresses", []).append(_address(pod))
        subsets = [
            {**addresses, "ports": [_port(*port) for port in ports]} for ports, addresses in groups.items() if ports
        ]
        body = {
            "apiVersion": "v1",
            "kind": "Endpoints",
            "metadata": {"name": name_of(service), "labels": clone(labels_of(service))},
            "subsets": subsets,
        }
        known = self._registry.store.get(ENDPOINTS, namespace_of(service), name_of(service))
        if known is None:
            self._registry.create(ENDPOINTS, namespace_of(service), body, CONTROLLER)
        elif known.get("subsets", []) != subsets:
            self._registry.update(ENDPOINTS, namespace_of(service), name_of(service), body, CONTROLLER)

    def _write_slice(self, service: Object, pods: list[Object]) -> None:
        ports = sorted({port for pod in pods for port in _ports(service, pod)})
        body = {
            "apiVersion": ENDPOINT_SLICE.api_version,
            "kind": ENDPOINT_SLICE.name,
            "metadata": {
                "generateName": f"{name_of(service)}-",
                "labels": {_SERVICE_NAME: name_of(service), _MANAGED_BY: "endpointslice-controller.k8s.io"},
                "ownerReferences": [owner_reference(service)],
            },
            "addressType": "IPv4",
            "endpoints": [_endpoint(pod) for pod in pods],
            "ports": [_port(*port) for port in ports],
        }
        known = self._known_slice(service)
        if known is None:
            self._registry.create(ENDPOINT_SLICE, namespace_of(service), body, CONTROLLER)
        elif (known.get("endpoints"), known.get("ports")) != (body["endpoints"], body["ports"]):
            body["metadata"] = known["metadata"]
            self._registry.update(ENDPOINT_SLICE, namespace_of(service), name_of(known), body, CONTROLLER)

    def _known_slice(self, service: Object) -> Object | None:
        for item in self._registry.store.items(ENDPOINT_SLICE, namespace_of(service)):
            owners = dig(item, "metadata", "ownerReferences", default=[])
            if any(owner["uid"] == uid_of(service) for owner in owners):
                return item
        return None


def _ports(service: Object, pod: Object) -> list[tuple[str, int, str]]:
    """Resolve a Service's target ports in a pod; a name that the pod does not have is left out."""
    found = []
    for port in service["spec"].get("ports") or []:
        target = port.get("targetPort", port["port"])
        number = target if isinstance(target, int) else _named_port(pod, target)
        if number:
            found.append((port.get("name") or "", number, port.get("protocol", "TCP")))
    return found


def _named_port(pod: Object, name: str) -> int:
    for container in pod["spec"]["containers"]:
        for port in container.get("ports") or []:
            if port.get("name") == name:
                return int(port["containerPort"])
    return int(name) if name.isdigit() else 0


def _port(name: str, number: int, protocol: str) -> Object:
    port: Object = {"port": number, "protocol": protocol}
    return {"name": name, **port} if name else port


def _reference(pod: Object) -> Object:
    return {"kind": "Pod", "name": name_of(pod), "namespace": namespace_of(pod), "uid": uid_of(pod)}


def _address(pod: Object) -> Object:
    return {"ip": pod["status"]["podIP"], "nodeName": pod["spec"].get("nodeName"), "targetRef": _reference(pod)}


def _endpoint(pod: Object) -> Object:
    leaving = is_deleting(pod)
    return {
        "addresses": [pod["status"]["podIP"]],
        "conditions": {"ready": is_ready(pod) and not leaving, "serving": is_ready(pod), "terminating": leaving},
        "nodeName": pod["spec"].get("nodeName"),
        "targetRef": _reference(pod),
    }
