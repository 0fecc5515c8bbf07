"""OpenAPI v3 documents, which kubectl reads for `explain`, for validation and for the merge keys of its patches."""

import hashlib
import json
from functools import lru_cache
from typing import Any

from streamway.sandbox.cluster.api.discovery import GIT_VERSION
from streamway.sandbox.cluster.api.kinds import KINDS, Kind
from streamway.sandbox.cluster.api.schema import load_schema
from streamway.sandbox.cluster.objects import Object

_QUANTITY = "io.k8s.apimachinery.pkg.api.resource.Quantity"
_INT_OR_STRING = "io.k8s.apimachinery.pkg.util.intstr.IntOrString"
_LOCAL, _SERVED = "#/$defs/", "#/components/schemas/"

# kubectl looks for these to know that the server validates fields and dry-runs by itself.
_WRITE_PARAMETERS = [
    {"name": name, "in": "query", "schema": {"type": "string", "uniqueItems": True}}
    for name in ("dryRun", "fieldManager", "fieldValidation")
]


def index() -> Object:
    """Answer /openapi/v3: where each group's document is."""
    return {
        "paths": {
            path: {"serverRelativeURL": f"/openapi/v3/{path}?hash={hashlib.sha256(document(path) or b'').hexdigest()}"}
            for path in sorted({kind.base_path.strip("/") for kind in KINDS})
        }
    }


@lru_cache(maxsize=64)
def document(path: str) -> bytes | None:
    """Give the document of one group and version, such as apis/apps/v1; None where nothing is served."""
    kinds = [kind for kind in KINDS if kind.base_path.strip("/") == path]
    if not kinds:
        return None
    names = [load_schema().definition_name(kind) for kind in kinds]
    body = {
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": GIT_VERSION},
        "paths": {place: methods for kind in kinds for place, methods in _paths(kind).items()},
        "components": {"schemas": {name: _served(name) for name in sorted(_reachable(names))}},
    }
    return json.dumps(body, separators=(",", ":")).encode()


def _paths(kind: Kind) -> dict[str, Object]:
    place = f"{kind.base_path}/namespaces/{{namespace}}" if kind.namespaced else kind.base_path
    collection, one = f"{place}/{kind.plural}", f"{place}/{kind.plural}/{{name}}"
    gvk = {"group": kind.group, "version": kind.version, "kind": kind.name}
    paths: dict[str, Object] = {collection: {"post": _operation(gvk, "post")}}
    if kind.is_stored:
        paths[collection]["get"] = _operation(gvk, "list")
        paths[one] = {method: _operation(gvk, method) for method in ("get", "put", "patch", "delete")}
    return paths


def _operation(gvk: Object, action: str) -> Object:
    operation: Object = {
        "responses": {"200": {"description": "OK"}},
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": gvk,
    }
    if action in ("post", "put", "patch"):
        operation["parameters"] = _WRITE_PARAMETERS
    return operation


def _reachable(names: list[str]) -> set[str]:
    definitions = load_schema().definitions
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += _references(definitions[name])
    return found


def _references(raw: Any) -> list[str]:
    if isinstance(raw, dict):
        own = [raw["$ref"].removeprefix(_LOCAL)] if isinstance(raw.get("$ref"), str) else []
        return own + [name for value in raw.values() for name in _references(value)]
    if isinstance(raw, list):
        return [name for value in raw for name in _references(value)]
    return []


def _served(name: str) -> Object:
    if name == _QUANTITY:
        return {"type": "string"}
    if name == _INT_OR_STRING:
        return {"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]}
    served: Object = _translated(load_schema().definitions[name])
    return served


def _translated(raw: Any) -> Any:
    """Undo what the package's definitions changed for JSON schema: lists of types with null, local references."""
    if isinstance(raw, list):
        return [_translated(item) for item in raw]
    if not isinstance(raw, dict):
        return raw
    shown = {key: _translated(value) for key, value in raw.items() if key != "enum"}
    if isinstance(shown.get("type"), list):
        shown["type"] = next(name for name in shown["type"] if name != "null")
    if isinstance(shown.get("$ref"), str):
        reference = {"$ref": _SERVED + shown.pop("$ref").removeprefix(_LOCAL)}
        return {**shown, "allOf": [reference]} if shown else reference
    return shown
