"""Turn a request's body into an object of a kind: types checked, unknown fields reported or dropped, nulls removed."""

from typing import Any

from streamway.sandbox.cluster.api.kinds import Kind
from streamway.sandbox.cluster.api.schema import Node, load_schema
from streamway.sandbox.cluster.api.statuses import Cause, bad_request, required
from streamway.sandbox.cluster.objects import Object

_PYTHON_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "quantity": (str, int, float),
    "int-or-string": (str, int),
}
_JSON_NAMES = {str: "string", int: "number", float: "number", bool: "bool", list: "array", dict: "object"}


class _Decoder:
    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.unknown: list[str] = []

    def value(self, value: Any, node: Node, path: str) -> Any:
        if node.shape == "opaque":
            return value
        if node.shape == "list":
            return self._list(value, node, path)
        if node.shape == "map":
            return self._map(value, node, path)
        if node.shape == "struct":
            return self._struct(value, node, path)
        return self._scalar(value, node, path)

    def _list(self, value: Any, node: Node, path: str) -> list[Any]:
        if not isinstance(value, list):
            raise self._mismatch(value, path, "array")
        item = node.item
        return [self.value(one, item, f"{path}[{index}]") for index, one in enumerate(value) if one is not None]

    def _map(self, value: Any, node: Node, path: str) -> Object:
        if not isinstance(value, dict):
            raise self._mismatch(value, path, "map")
        child = node.child("")
        assert child is not None, "a map has a type for its values"
        return {key: self.value(one, child, f"{path}.{key}") for key, one in value.items() if one is not None}

    def _struct(self, value: Any, node: Node, path: str) -> Object:
        if not isinstance(value, dict):
            raise self._mismatch(value, path, "object")
        known: Object = {}
        for key, one in value.items():
            child = node.child(key)
            where = f"{path}.{key}" if path else key
            if child is None:
                self.unknown.append(where)
            elif one is not None:
                known[key] = self.value(one, child, where)
        return known

    def _scalar(self, value: Any, node: Node, path: str) -> Any:
        expected = _PYTHON_TYPES[node.scalar_type]
        fits = isinstance(value, expected) and (not isinstance(value, bool) or bool in expected)
        if not fits:
            raise self._mismatch(value, path, node.scalar_type)
        return str(value) if node.scalar_type == "quantity" else value

    def _mismatch(self, value: Any, path: str, expected: str) -> Exception:
        found = _JSON_NAMES.get(type(value), type(value).__name__)
        kind = self.kind
        return bad_request(
            f'{kind.name} in version "{kind.version}" cannot be handled as a {kind.name}: '
            f"json: cannot unmarshal {found} into Go struct field {kind.name}.{path} of type {expected}"
        )


def decode(kind: Kind, body: Any) -> tuple[Object, list[str]]:
    """Check a body's types.

    Returns:
        The object without nulls and unknown fields, and the paths of the unknown fields.

    Raises:
        ApiError: 400, when the body is of another kind or a value of another type.
    """
    if not isinstance(body, dict):
        raise bad_request("the object provided is unrecognized (must be of type " + kind.name + ")")
    _check_kind(kind, body)
    decoder = _Decoder(kind)
    item: Object = decoder.value(body, load_schema().root(kind), "")
    item.setdefault("metadata", {})
    item["apiVersion"], item["kind"] = kind.api_version, kind.name
    return item, decoder.unknown


def _check_kind(kind: Kind, body: Object) -> None:
    said_kind, said_version = body.get("kind"), body.get("apiVersion")
    if said_kind and said_kind != kind.name:
        raise bad_request(f"the kind in the data ({said_kind}) does not match the expected kind ({kind.name})")
    if said_version and said_version != kind.api_version:
        raise bad_request(
            f"the API version in the data ({said_version}) does not match the expected API version ({kind.api_version})"
        )


def missing_fields(kind: Kind, item: Object) -> list[Cause]:
    """List the fields that the kind's types require and that an object lacks, outside its status."""
    return list(_missing(item, load_schema().root(kind), ""))


def _missing(value: Any, node: Node, path: str) -> list[Cause]:
    causes: list[Cause] = []
    if node.shape == "struct" and isinstance(value, dict):
        prefix = f"{path}." if path else ""
        causes += [required(prefix + field) for field in node.required if value.get(field) is None]
        for key, one in value.items():
            child = node.child(key)
            if child is not None and not (path == "" and key in ("status", "metadata")):
                causes += _missing(one, child, prefix + key)
    elif node.shape == "list" and isinstance(value, list):
        for index, one in enumerate(value):
            causes += _missing(one, node.item, f"{path}[{index}]")
    return causes
