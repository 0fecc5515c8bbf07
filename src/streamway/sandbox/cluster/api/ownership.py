"""Who owns which field: the bookkeeping behind metadata.managedFields.

Every write is tracked. An update takes the fields it changed away from others; an apply declares the whole set of
fields its sender wants, conflicts where someone else holds a different value, and gives up what it no longer names.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from streamway.sandbox.cluster.api.fields import (
    FieldSet,
    Path,
    decode_fields,
    encode_fields,
    owned_fields,
    show_path,
    with_parents,
)
from streamway.sandbox.cluster.api.merging import merge, remove_paths
from streamway.sandbox.cluster.api.schema import Node
from streamway.sandbox.cluster.api.statuses import ApiError
from streamway.sandbox.cluster.objects import Object, timestamp

OwnerKey = tuple[str, str, str, str]


@dataclass(frozen=True, kw_only=True)
class Owner:
    """One entry of managedFields.

    Args:
        manager: Who wrote.
        operation: Apply or Update.
        api_version: In which version the paths are written.
        subresource: Through which subresource, empty for the object itself.
        time: When the set of fields last changed.
        fields: What is owned.
    """

    manager: str
    operation: str
    api_version: str
    subresource: str = ""
    time: str = ""
    fields: FieldSet = frozenset()

    @property
    def key(self) -> OwnerKey:
        return (self.manager, self.operation, self.api_version, self.subresource)

    def described(self) -> str:
        """Name an owner as conflict messages do."""
        text = f'"{self.manager}"'
        if self.subresource:
            text += f' with subresource "{self.subresource}"'
        if self.operation == "Update":
            text += f" using {self.api_version}" + (f" at {self.time}" if self.time else "")
        return text


def read_owners(item: Object) -> list[Owner]:
    """Read managedFields; an entry without a manager is the way to clear them."""
    return [
        Owner(
            manager=entry.get("manager", ""),
            operation=entry["operation"],
            api_version=entry.get("apiVersion", ""),
            subresource=entry.get("subresource", ""),
            time=entry.get("time", ""),
            fields=decode_fields(entry.get("fieldsV1") or {}),
        )
        for entry in item.get("metadata", {}).get("managedFields") or []
        if entry.get("operation")
    ]


def write_owners(item: Object, owners: Iterable[Owner]) -> None:
    """Write managedFields, in the order of a real API server: applies first, then by time."""
    known = [owner for owner in owners if owner.fields]
    known.sort(key=lambda owner: (owner.operation != "Apply", owner.time, owner.manager, owner.subresource))
    entries = [_entry(owner) for owner in known]
    if entries:
        item["metadata"]["managedFields"] = entries
    else:
        item["metadata"].pop("managedFields", None)


def _entry(owner: Owner) -> Object:
    entry = {
        "manager": owner.manager,
        "operation": owner.operation,
        "apiVersion": owner.api_version,
        "time": owner.time,
        "fieldsType": "FieldsV1",
        "fieldsV1": encode_fields(owner.fields),
    }
    return entry | ({"subresource": owner.subresource} if owner.subresource else {})


def track_update(owners: list[Owner], live: Object, item: Object, root: Node, writer: Owner) -> list[Owner]:
    """Say who owns what after an update: the writer has what it changed, nobody what is gone.

    Args:
        owners: Who owned what before.
        live: The object before, empty for a creation.
        item: The object after.
        root: The type of the object.
        writer: The entry of whoever writes; its fields are ignored.
    """
    before, after = owned_fields(live, root), owned_fields(item, root)
    changed = frozenset(path for path, value in after.items() if path not in before or before[path] != value)
    kept = _alive(owners, after, changed, writer)
    mine = next((owner for owner in owners if owner.key == writer.key), writer)
    fields = (mine.fields | changed) & after.keys()
    return [*kept, _with_fields(mine, fields)]


def _alive(owners: list[Owner], after: dict[Path, Any], taken: FieldSet, writer: Owner) -> list[Owner]:
    alive = with_parents(frozenset(after))
    others = [owner for owner in owners if owner.key != writer.key]
    return [_with_fields(owner, (owner.fields & alive) - taken) for owner in others]


def _with_fields(owner: Owner, fields: FieldSet) -> Owner:
    if fields == owner.fields:
        return owner
    return replace(owner, fields=frozenset(fields), time=timestamp())


def apply_fields(
    owners: list[Owner], live: Object, applied: Object, root: Node, writer: Owner, *, force: bool
) -> tuple[Object, list[Owner]]:
    """Merge what a writer applies into an object.

    Args:
        owners: Who owned what before.
        live: The object before, empty for a creation.
        applied: What the writer declares.
        root: The type of the object.
        writer: The entry of whoever applies; its fields are ignored.
        force: Take fields over from others instead of refusing.

    Returns:
        The merged object without managedFields, and who owns what afterwards.

    Raises:
        ApiError: 409, naming every field that another manager holds with another value.
    """
    wanted, before = owned_fields(applied, root), owned_fields(live, root)
    mine = next((owner for owner in owners if owner.key == writer.key), writer)
    others = [owner for owner in owners if owner.key != writer.key]
    different = frozenset(path for path, value in wanted.items() if path not in before or before[path] != value)
    conflicts = [(owner, path) for owner in others for path in sorted(owner.fields & different)]
    if conflicts and not force:
        raise _conflict_error(conflicts)
    others = [_with_fields(owner, owner.fields - different) for owner in others]
    still_owned = with_parents(frozenset(wanted).union(*(owner.fields for owner in others)))
    merged = merge(live, applied, root)
    remove_paths(merged, with_parents(mine.fields) - still_owned, root)
    return merged, [*others, _with_fields(mine, frozenset(wanted))]


def _conflict_error(conflicts: list[tuple[Owner, Path]]) -> ApiError:
    causes = [
        {
            "reason": "FieldManagerConflict",
            "message": f"conflict with {owner.described()}",
            "field": show_path(path),
        }
        for owner, path in conflicts
    ]
    if len(conflicts) == 1:
        text = f"Apply failed with 1 conflict: {causes[0]['message']}: {causes[0]['field']}"
        return ApiError(409, "Conflict", text, {"causes": causes})
    lines: list[str] = []
    for owner in {owner.key: owner for owner, _ in conflicts}.values():
        lines.append(f"conflicts with {owner.described()}:")
        lines += [f"- {show_path(path)}" for other, path in conflicts if other.key == owner.key]
    text = f"Apply failed with {len(conflicts)} conflicts: " + "\n".join(lines)
    return ApiError(409, "Conflict", text, {"causes": causes})
