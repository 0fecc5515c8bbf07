"""Field paths: which fields an object has, in the terms in which managedFields say who owns them.

A path is a tuple of steps, each as it stands in a FieldsV1 document: "f:name" for a field or a map's key,
'k:{"name":"web"}' for an item of a keyed list, 'v:"a"' for an element of a set. The format is the one of
sigs.k8s.io/structured-merge-diff, described in Kubernetes' documentation of server-side apply.
"""

import json
from typing import Any

from streamway.sandbox.cluster.api.schema import KEY_DEFAULTS, Node
from streamway.sandbox.cluster.objects import Object

Path = tuple[str, ...]
FieldSet = frozenset[Path]

# The value of a path that only says "this item is here".
PRESENT = object()

# What identifies an object or is kept by the server is owned by nobody.
_UNOWNED_METADATA = (
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "generation",
    "managedFields",
    "name",
    "namespace",
    "resourceVersion",
    "selfLink",
    "uid",
)


def owned_fields(item: Object, root: Node) -> dict[Path, Any]:
    """List an object's fields that can be owned, with their values."""
    visible = {key: value for key, value in item.items() if key not in ("apiVersion", "kind", "metadata")}
    metadata = {key: value for key, value in item.get("metadata", {}).items() if key not in _UNOWNED_METADATA}
    if metadata:
        visible["metadata"] = metadata
    return leaves(visible, root) if visible else {}


def leaves(value: Any, node: Node | None, path: Path = ()) -> dict[Path, Any]:
    """List the fields of a value down to the depth at which they have one owner."""
    if node is None or node.shape in ("scalar", "opaque") or node.is_atomic:
        return {path: value}
    if isinstance(value, list):
        return _list_leaves(value, node, path)
    if not isinstance(value, dict) or not value:
        return {path: value}
    found: dict[Path, Any] = {}
    for key, child in value.items():
        found |= leaves(child, node.child(key), (*path, f"f:{key}"))
    return found


def _list_leaves(items: list[Any], node: Node, path: Path) -> dict[Path, Any]:
    if not items:
        return {path: items}
    found: dict[Path, Any] = {}
    for item in items:
        step = item_step(item, node)
        found[(*path, step)] = PRESENT
        if not node.is_set:
            found |= leaves(item, node.item, (*path, step))
    return found


def item_step(item: Any, node: Node) -> str:
    """Name an item of a set or of a keyed list as a step of a path."""
    if node.is_set:
        return "v:" + json.dumps(item, separators=(",", ":"))
    key = {name: item.get(name, KEY_DEFAULTS.get(name)) for name in node.keys}
    known = {name: value for name, value in sorted(key.items()) if value is not None}
    return "k:" + json.dumps(known, separators=(",", ":"))


def with_parents(paths: FieldSet) -> set[Path]:
    """Add every field above the given ones, which are owned through them."""
    return {path[:length] for path in paths for length in range(1, len(path) + 1)}


def encode_fields(paths: FieldSet) -> Object:
    """Write a FieldsV1 document."""
    document: Object = {}
    for path in sorted(paths):
        place = document
        for step in path:
            place = place.setdefault(step, {})
        place["."] = {}
    _drop_marks_of_leaves(document)
    return document


def _drop_marks_of_leaves(place: Object) -> None:
    for step, below in place.items():
        if step == ".":
            continue
        if list(below) == ["."]:
            below.clear()
        else:
            _drop_marks_of_leaves(below)


def decode_fields(document: Object) -> FieldSet:
    """Read a FieldsV1 document."""
    return frozenset(_paths(document, ()))


def _paths(place: Object, path: Path) -> set[Path]:
    if not place:
        return {path} if path else set()
    found: set[Path] = set()
    for step, below in place.items():
        found |= {path} if step == "." else _paths(below, (*path, step))
    return found


def show_path(path: Path) -> str:
    """Write a path as conflict messages do: .spec.containers[name="web"].image."""
    shown = ""
    for step in path:
        mark, _, text = step.partition(":")
        if mark == "f":
            shown += f".{text}"
        elif mark == "k":
            pairs = (f"{key}={json.dumps(value)}" for key, value in json.loads(text).items())
            shown += f"[{','.join(pairs)}]"
        else:
            shown += f"[={text}]"
    return shown
