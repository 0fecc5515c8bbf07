"""Merge an applied configuration into an object, and take fields out of one, both by the kind's types."""

from typing import Any

from streamway.sandbox.cluster.api.fields import Path, item_step
from streamway.sandbox.cluster.api.schema import Node
from streamway.sandbox.cluster.objects import Object, clone


def merge(live: Any, applied: Any, node: Node | None) -> Any:
    """Lay an applied value over a live one: structs and maps by key, keyed lists by item, the rest as a whole."""
    granular = node is not None and not node.is_atomic
    if granular and isinstance(live, dict) and isinstance(applied, dict):
        assert node is not None
        return _merge_fields(live, applied, node)
    if granular and isinstance(live, list) and isinstance(applied, list):
        assert node is not None
        return _merge_lists(live, applied, node)
    return clone(applied)


def _merge_fields(live: Object, applied: Object, node: Node) -> Object:
    merged: Object = clone(live)
    for key, value in applied.items():
        merged[key] = merge(live.get(key), value, node.child(key))
    return merged


def _merge_lists(live: list[Any], applied: list[Any], node: Node) -> list[Any]:
    """Keep the applied order; an item only the live list has stays behind the item it stood behind."""
    before = {item_step(item, node): item for item in live}
    steps = [item_step(item, node) for item in applied]
    merged = [
        clone(item) if node.is_set else merge(before.get(step), item, node.item)
        for step, item in zip(steps, applied, strict=True)
    ]
    previous = ""
    for step, item in before.items():
        if step not in steps:
            place = steps.index(previous) + 1 if previous else 0
            steps.insert(place, step)
            merged.insert(place, clone(item))
        previous = step
    return merged


def remove_paths(item: Object, paths: set[Path], root: Node) -> None:
    """Take fields out of an object, and with them everything below.

    A parent that is emptied by this goes too, unless it is itself still wanted, which the caller expresses by not
    naming it.
    """
    tops = {path for path in paths if path[:-1] not in paths}
    for path in tops:
        _remove(item, path, root)


def _remove(place: Any, path: Path, node: Node | None) -> None:
    step, rest = path[0], path[1:]
    if isinstance(place, list) and node is not None:
        index = next((i for i, one in enumerate(place) if item_step(one, node) == step), None)
        if index is None:
            return
        if rest:
            _remove(place[index], rest, node.item)
        else:
            del place[index]
        return
    key = step.removeprefix("f:")
    if not isinstance(place, dict) or key not in place:
        return
    if not rest:
        del place[key]
        return
    _remove(place[key], rest, node.child(key) if node else None)
