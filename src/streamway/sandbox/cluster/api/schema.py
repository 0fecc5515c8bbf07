"""What each kind may hold, from Kubernetes' own OpenAPI definitions, so that validation, server-side apply and patches
follow the same types as a real API server.

The definitions come with the package kubernetes-validate, which keeps the extensions that matter here:
x-kubernetes-list-type and -list-map-keys (who owns which list item), x-kubernetes-patch-merge-key and
-patch-strategy (strategic merge patches).
"""

import importlib.util
import json
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

from streamway.errors import SandboxError
from streamway.sandbox.cluster.api.kinds import Kind

# The release whose types are served; kubectl accepts servers one minor version away from itself.
SERVED_VERSION = "1.36.0"

_REFERENCE = "#/$defs/"
_META = "io.k8s.apimachinery.pkg.apis.meta.v1."
_SCALARS = {
    "io.k8s.apimachinery.pkg.api.resource.Quantity": "quantity",
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString": "int-or-string",
    _META + "Time": "string",
    _META + "MicroTime": "string",
}
_OPAQUE = {_META + "FieldsV1", "io.k8s.apimachinery.pkg.runtime.RawExtension"}

# A key of a list item that is missing counts as its default, so that {containerPort: 8000} is the same item as
# {containerPort: 8000, protocol: TCP}.
KEY_DEFAULTS = {"protocol": "TCP"}

Shape = Literal["scalar", "struct", "map", "list", "opaque"]


class Node:
    """One place in the tree of types: what may stand there and how it merges.

    Args:
        definitions: All definitions, for following references.
        raw: The definition of this place.
        name: The name of the referenced definition, empty for one written in place.
    """

    def __init__(self, definitions: dict[str, Any], raw: dict[str, Any]) -> None:
        reference = raw.get("$ref", "")
        self.name: str = reference.removeprefix(_REFERENCE)
        self._definitions = definitions
        self.raw: dict[str, Any] = {**definitions[self.name], **raw} if self.name else raw
        self._children: dict[str, Node] = {}

    @cached_property
    def scalar_type(self) -> str:
        """Name a scalar's type: string, integer, number, boolean, quantity or int-or-string."""
        if self.name in _SCALARS:
            return _SCALARS[self.name]
        kind = self.raw.get("type", "")
        names = kind if isinstance(kind, list) else [kind]
        return next((name for name in names if name != "null"), "")

    @cached_property
    def shape(self) -> Shape:
        """Tell which form a value has here."""
        if self.name in _SCALARS:
            return "scalar"
        if self.name in _OPAQUE:
            return "opaque"
        if "properties" in self.raw:
            return "struct"
        if "additionalProperties" in self.raw:
            return "map"
        if "items" in self.raw:
            return "list"
        return "struct" if self.scalar_type == "object" else "scalar" if self.scalar_type else "opaque"

    @property
    def is_atomic(self) -> bool:
        """Tell whether a map, struct or list has one owner as a whole."""
        if self.shape == "list":
            return bool(self.raw.get("x-kubernetes-list-type", "atomic") == "atomic")
        return self.shape == "opaque" or self.raw.get("x-kubernetes-map-type") == "atomic"

    @property
    def is_set(self) -> bool:
        return self.raw.get("x-kubernetes-list-type") == "set"

    @property
    def keys(self) -> tuple[str, ...]:
        """Name the fields that identify an item of this list, empty unless it is a list of the map type."""
        return tuple(self.raw.get("x-kubernetes-list-map-keys", ()))

    @property
    def merge_key(self) -> str:
        return str(self.raw.get("x-kubernetes-patch-merge-key", ""))

    @property
    def merge_strategies(self) -> tuple[str, ...]:
        return tuple(str(self.raw.get("x-kubernetes-patch-strategy", "")).split(","))

    @property
    def required(self) -> tuple[str, ...]:
        return tuple(self.raw.get("required", ()))

    @property
    def field_names(self) -> tuple[str, ...]:
        return tuple(self.raw.get("properties", {}))

    def child(self, field: str) -> "Node | None":
        """Give the type of a field of a struct, or of any key of a map."""
        if self.shape == "map":
            return self._at("additionalProperties", self.raw["additionalProperties"])
        raw = self.raw.get("properties", {}).get(field)
        return self._at(field, raw) if raw is not None else None

    @property
    def item(self) -> "Node":
        """Give the type of a list's items."""
        return self._at("items", self.raw["items"])

    def _at(self, key: str, raw: dict[str, Any]) -> "Node":
        if key not in self._children:
            self._children[key] = Node(self._definitions, raw)
        return self._children[key]


class Schema:
    """The types of every kind.

    Args:
        definitions: OpenAPI definitions by name.
    """

    def __init__(self, definitions: dict[str, Any]) -> None:
        self.definitions = definitions
        self._names = _names_of_kinds(definitions)
        self._roots: dict[str, Node] = {}

    def definition_name(self, kind: Kind) -> str:
        """Name the definition of a kind."""
        return self._names[(kind.group, kind.version, kind.name)]

    def root(self, kind: Kind) -> Node:
        """Give the type of a kind."""
        return self.named(self.definition_name(kind))

    def named(self, name: str) -> Node:
        """Give the type that a definition describes."""
        if name not in self._roots:
            self._roots[name] = Node(self.definitions, {"$ref": _REFERENCE + name})
        return self._roots[name]


def _names_of_kinds(definitions: dict[str, Any]) -> dict[tuple[str, str, str], str]:
    names = {}
    for name, raw in definitions.items():
        for kind in raw.get("x-kubernetes-group-version-kind", ()):
            names[(kind["group"], kind["version"], kind["kind"])] = name
    return names


@lru_cache(maxsize=1)
def load_schema() -> Schema:
    """Read the definitions of the served release.

    Raises:
        SandboxError: the package that carries them is not installed.
    """
    found = importlib.util.find_spec("kubernetes_validate")
    if found is None or found.origin is None:
        raise SandboxError(
            "The sandbox's cluster has no API definitions: the package kubernetes-validate is not installed.",
            next_step="Install streamway with its sandbox extra: pip install 'streamway[sandbox]'.",
        )
    folder = Path(found.origin).parent / "kubernetes-json-schema" / f"v{SERVED_VERSION}-local"
    return Schema(json.loads((folder / "_definitions.json").read_text())["$defs"])
