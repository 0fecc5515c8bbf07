"""A container's environment variables, put together as the kubelet does."""

import base64
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from streamway.sandbox.cluster.api.kinds import CONFIG_MAP, SECRET, SERVICE
from streamway.sandbox.cluster.api.quantities import parse_quantity
from streamway.sandbox.cluster.api.store import Store
from streamway.sandbox.cluster.objects import Object, annotations_of, dig, labels_of, name_of, namespace_of, uid_of

_REFERENCE = re.compile(r"\$(\$|\(([-._a-zA-Z0-9]+)\))")
_SUBSCRIPT = re.compile(r"^metadata\.(labels|annotations)\['([^']+)'\]$")


IssueToken = Callable[[str, str, int], str]
"""Makes a token from a namespace, the name of a service account in it, and a lifetime in seconds."""


class ConfigError(Exception):
    """A variable or volume refers to something that is not there (yet)."""


@dataclass(frozen=True, kw_only=True)
class PodFacts:
    """What a pod's variables may ask about its surroundings.

    Args:
        store: Where config maps, secrets and services are.
        pod: The pod.
        pod_ip: Its address.
        api_host: Where the API server is.
        api_port: Its port.
        issue_token: Makes a token for a service account.
        allocatable: What its node has for pods.
    """

    store: Store
    pod: Object
    pod_ip: str
    api_host: str
    api_port: int
    issue_token: IssueToken
    allocatable: dict[str, str]


def build_environment(facts: PodFacts, container: Object, image: dict[str, str]) -> dict[str, str]:
    """Put a container's environment together.

    Args:
        facts: The pod and its surroundings.
        container: The container.
        image: What the image sets.

    Raises:
        ConfigError: something that is referred to is not there.
    """
    environment = dict(image)
    environment |= _service_links(facts)
    for source in container.get("envFrom") or []:
        environment |= _everything_from(facts, source)
    for variable in container.get("env") or []:
        value = _value(facts, container, variable)
        if value is not None:
            environment[variable["name"]] = expand(value, environment) if "value" in variable else value
    return environment


def expand(text: str, environment: dict[str, str]) -> str:
    """Replace $(NAME) by the variable; $$ stands for a dollar, and an unknown name stays as it is."""

    def replaced(match: re.Match[str]) -> str:
        if match.group(1) == "$":
            return "$"
        return environment.get(match.group(2), match.group(0))

    return _REFERENCE.sub(replaced, text)


def _value(facts: PodFacts, container: Object, variable: Object) -> str | None:
    source = variable.get("valueFrom")
    if source is None:
        return str(variable.get("value", ""))
    if source.get("fieldRef"):
        return field_value(facts, source["fieldRef"]["fieldPath"])
    if source.get("resourceFieldRef"):
        return _resource_value(facts, container, source["resourceFieldRef"])
    if source.get("configMapKeyRef"):
        return _from_config(facts, source["configMapKeyRef"])
    if source.get("secretKeyRef"):
        return _from_secret(facts, source["secretKeyRef"])
    return None


def _from_config(facts: PodFacts, reference: Object) -> str | None:
    found = config_data(facts, reference["name"], optional=bool(reference.get("optional")))
    return _pick(facts, found, reference, "ConfigMap")


def _from_secret(facts: PodFacts, reference: Object) -> str | None:
    found = secret_data(facts, reference["name"], optional=bool(reference.get("optional")))
    return _pick(facts, found, reference, "Secret")


def _pick(facts: PodFacts, found: dict[str, bytes] | None, reference: Object, kind: str) -> str | None:
    if found is not None and reference["key"] in found:
        return found[reference["key"]].decode()
    if reference.get("optional"):
        return None
    place = f"{namespace_of(facts.pod)}/{reference['name']}"
    raise ConfigError(f"couldn't find key {reference['key']} in {kind} {place}")


def config_data(facts: PodFacts, name: str, *, optional: bool) -> dict[str, bytes] | None:
    """Give a config map's contents; None when it is not there and need not be.

    Raises:
        ConfigError: it is not there.
    """
    found = facts.store.get(CONFIG_MAP, namespace_of(facts.pod), name)
    if found is None:
        if optional:
            return None
        raise ConfigError(f'configmap "{name}" not found')
    plain = {key: value.encode() for key, value in (found.get("data") or {}).items()}
    return plain | {key: base64.b64decode(value) for key, value in (found.get("binaryData") or {}).items()}


def secret_data(facts: PodFacts, name: str, *, optional: bool) -> dict[str, bytes] | None:
    """Give a secret's contents; None when it is not there and need not be.

    Raises:
        ConfigError: it is not there.
    """
    found = facts.store.get(SECRET, namespace_of(facts.pod), name)
    if found is None:
        if optional:
            return None
        raise ConfigError(f'secret "{name}" not found')
    return {key: base64.b64decode(value) for key, value in (found.get("data") or {}).items()}


def _everything_from(facts: PodFacts, source: Object) -> dict[str, str]:
    prefix = source.get("prefix") or ""
    if source.get("configMapRef"):
        reference = source["configMapRef"]
        found = config_data(facts, reference["name"], optional=bool(reference.get("optional")))
    else:
        reference = source["secretRef"]
        found = secret_data(facts, reference["name"], optional=bool(reference.get("optional")))
    return {prefix + key: value.decode() for key, value in (found or {}).items()}


def field_value(facts: PodFacts, path: str) -> str:
    """Give the value of a downward API field."""
    pod = facts.pod
    if match := _SUBSCRIPT.match(path):
        source = labels_of(pod) if match.group(1) == "labels" else annotations_of(pod)
        return source.get(match.group(2), "")
    known: dict[str, Any] = {
        "metadata.name": name_of(pod),
        "metadata.namespace": namespace_of(pod),
        "metadata.uid": uid_of(pod),
        "spec.nodeName": dig(pod, "spec", "nodeName", default=""),
        "spec.serviceAccountName": dig(pod, "spec", "serviceAccountName", default=""),
        "status.hostIP": "127.0.0.1",
        "status.podIP": facts.pod_ip,
        "status.podIPs": facts.pod_ip,
    }
    if path not in known:
        raise ConfigError(f"unsupported fieldPath: {path}")
    return str(known[path])


def _resource_value(facts: PodFacts, container: Object, reference: Object) -> str:
    owner = container
    for other in facts.pod["spec"]["containers"]:
        if other["name"] == reference.get("containerName"):
            owner = other
    field, _, resource = reference["resource"].partition(".")
    text = dig(owner, "resources", field, resource) or facts.allocatable.get(resource, "0")
    divisor = parse_quantity(reference.get("divisor") or "1")
    exact = parse_quantity(text) / (divisor or 1)
    return str(-int(-exact // 1))


def _service_links(facts: PodFacts) -> dict[str, str]:
    """Make the variables by which pods found Services before there was DNS; one called vllm becomes VLLM_PORT."""
    links = {"KUBERNETES_SERVICE_HOST": facts.api_host, "KUBERNETES_SERVICE_PORT": str(facts.api_port)}
    if facts.pod["spec"].get("enableServiceLinks") is False:
        return links
    for service in facts.store.items(SERVICE, namespace_of(facts.pod)):
        address, ports = dig(service, "spec", "clusterIP"), dig(service, "spec", "ports", default=[])
        if address and address != "None" and ports:
            links |= _links_to(name_of(service), address, ports)
    return links


def _links_to(name: str, address: str, ports: list[Object]) -> dict[str, str]:
    prefix = name.upper().replace("-", "_")
    first = ports[0]
    links = {f"{prefix}_SERVICE_HOST": address, f"{prefix}_SERVICE_PORT": str(first["port"])}
    for port in ports:
        if port.get("name"):
            links[f"{prefix}_SERVICE_PORT_{port['name'].upper().replace('-', '_')}"] = str(port["port"])
        protocol, number = port.get("protocol", "TCP"), port["port"]
        url = f"{protocol.lower()}://{address}:{number}"
        one = f"{prefix}_PORT_{number}_{protocol}"
        links |= {one: url, f"{one}_PROTO": protocol.lower(), f"{one}_PORT": str(number), f"{one}_ADDR": address}
        if port is first:
            links[f"{prefix}_PORT"] = url
    return links
