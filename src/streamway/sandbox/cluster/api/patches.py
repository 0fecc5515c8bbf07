"""The patch languages: JSON patch (RFC 6902), JSON merge patch (RFC 7386), Kubernetes' strategic merge patch."""

from typing import Any

from streamway.sandbox.cluster.api.schema import Node
from streamway.sandbox.cluster.api.statuses import ApiError, bad_request
from streamway.sandbox.cluster.objects import Object, clone


def json_patch(target: Object, operations: Any) -> Object:
    """Carry out a JSON patch.

    Raises:
        ApiError: 422 when an operation cannot be carried out, as a real API server answers.
    """
    if not isinstance(operations, list):
        raise bad_request("error decoding patch: json: cannot unmarshal object into Go value of type jsonpatch.Patch")
    document: Any = clone(target)
    for operation in operations:
        try:
            document = _carry_out(document, operation)
        except (KeyError, IndexError, ValueError, TypeError) as error:
            message = (
                f"the server rejected our request due to an error in our request: {operation.get('op')} operation"
                f" does not apply: doc is missing path: {operation.get('path')}: missing value ({error})"
            )
            raise ApiError(422, "Invalid", message, {}) from error
    patched: Object = document
    return patched


def _carry_out(document: Any, operation: Object) -> Any:
    kind, path = operation["op"], _steps(operation["path"])
    if kind == "add":
        return _add(document, path, clone(operation.get("value")))
    if kind == "remove":
        return _remove(document, path)
    if kind == "replace":
        _lookup(document, path)
        return _put(document, path, clone(operation.get("value")))
    if kind == "test":
        if _lookup(document, path) != operation.get("value"):
            raise ValueError("testing value failed")
        return document
    value = clone(_lookup(document, _steps(operation["from"])))
    if kind == "copy":
        return _add(document, path, value)
    if kind == "move":
        return _add(_remove(document, _steps(operation["from"])), path, value)
    raise ValueError(f"unexpected kind: {kind}")


def _steps(pointer: str) -> list[str]:
    return [step.replace("~1", "/").replace("~0", "~") for step in pointer.split("/")[1:]]


def _lookup(place: Any, path: list[str]) -> Any:
    for step in path:
        place = place[int(step)] if isinstance(place, list) else place[step]
    return place


def _add(document: Any, path: list[str], value: Any) -> Any:
    if not path:
        return value
    parent = _lookup(document, path[:-1])
    if isinstance(parent, list):
        index = len(parent) if path[-1] == "-" else int(path[-1])
        if not 0 <= index <= len(parent):
            raise IndexError(f"index {index} is out of bounds")
        parent.insert(index, value)
    else:
        parent[path[-1]] = value
    return document


def _put(document: Any, path: list[str], value: Any) -> Any:
    if not path:
        return value
    parent = _lookup(document, path[:-1])
    parent[int(path[-1]) if isinstance(parent, list) else path[-1]] = value
    return document


def _remove(document: Any, path: list[str]) -> Any:
    parent = _lookup(document, path[:-1])
    del parent[int(path[-1]) if isinstance(parent, list) else path[-1]]
    return document


def merge_patch(target: Any, patch: Any) -> Any:
    """Carry out a JSON merge patch: null removes, objects merge, everything else replaces."""
    if not isinstance(patch, dict):
        return clone(patch)
    merged = clone(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge_patch(merged.get(key), value)
    return merged


def strategic_patch(target: Any, patch: Object, node: Node | None) -> Object:
    """Carry out a strategic merge patch: like a merge patch, but lists with a merge key merge by item.

    Understands the directives $patch (delete, replace, merge), $retainKeys, $deleteFromPrimitiveList/FIELD and
    $setElementOrder/FIELD.
    """
    directive = patch.get("$patch")
    if directive == "replace":
        return {key: clone(value) for key, value in patch.items() if key != "$patch"}
    if directive == "delete":
        return {}
    merged = clone(target) if isinstance(target, dict) else {}
    if "$retainKeys" in patch:
        merged = {key: value for key, value in merged.items() if key in patch["$retainKeys"]}
    for key, value in patch.items():
        if not key.startswith("$"):
            _patch_field(merged, key, value, node.child(key) if node else None)
    _delete_from_sets(merged, patch)
    _set_order(merged, patch, node)
    return merged


def _patch_field(merged: Object, key: str, value: Any, node: Node | None) -> None:
    if value is None:
        merged.pop(key, None)
    elif isinstance(value, dict):
        below = strategic_patch(merged.get(key), value, node)
        if value.get("$patch") == "delete":
            merged.pop(key, None)
        else:
            merged[key] = below
    elif isinstance(value, list) and node is not None and "merge" in node.merge_strategies:
        merged[key] = _patch_list(merged.get(key) or [], value, node)
    else:
        merged[key] = clone(value)


def _patch_list(items: list[Any], patches: list[Any], node: Node) -> list[Any]:
    if any(isinstance(patch, dict) and patch == {"$patch": "replace"} for patch in patches):
        return [clone(patch) for patch in patches if patch != {"$patch": "replace"}]
    if not node.merge_key:
        return items + [clone(patch) for patch in patches if patch not in items]
    merged, key = clone(items), node.merge_key
    for patch in patches:
        place = next((i for i, item in enumerate(merged) if item.get(key) == patch.get(key)), None)
        if patch.get("$patch") == "delete":
            merged = [item for item in merged if item.get(key) != patch.get(key)]
        elif place is None:
            merged.append(strategic_patch({}, patch, node.item))
        else:
            merged[place] = strategic_patch(merged[place], patch, node.item)
    result: list[Any] = merged
    return result


def _delete_from_sets(merged: Object, patch: Object) -> None:
    for directive, values in patch.items():
        if directive.startswith("$deleteFromPrimitiveList/"):
            key = directive.partition("/")[2]
            merged[key] = [item for item in merged.get(key) or [] if item not in values]


def _set_order(merged: Object, patch: Object, node: Node | None) -> None:
    for directive, wanted in patch.items():
        key = directive.removeprefix("$setElementOrder/")
        if key == directive or not isinstance(merged.get(key), list):
            continue
        child = node.child(key) if node else None
        merge_key = child.merge_key if child else ""
        order = [_identity(item, merge_key) for item in wanted]
        last = len(order)
        places = {id(item): _place(order, _identity(item, merge_key), last) for item in merged[key]}
        merged[key].sort(key=lambda item, places=places: places[id(item)])


def _identity(item: Any, merge_key: str) -> Any:
    return item.get(merge_key) if merge_key and isinstance(item, dict) else item


def _place(order: list[Any], identity: Any, last: int) -> int:
    return order.index(identity) if identity in order else last
