"""The few words that every file of the cluster shares about Kubernetes objects, which are plain JSON dictionaries here.

Stored objects are never changed in place: whoever wants a change clones first. A clone of JSON is several times
faster than copy.deepcopy, and objects are cloned at every step.
"""

import re
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

Object = dict[str, Any]

# The alphabet of the names Kubernetes generates: no vowels and no look-alikes, so that no words appear by chance.
_NAME_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"

_TIMESTAMP = re.compile(r"^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?(Z|[+-]\d\d:\d\d)$")


def clone(value: Any) -> Any:
    """Copy a JSON value, deeply."""
    if isinstance(value, dict):
        return {key: clone(item) for key, item in value.items()}
    if isinstance(value, list):
        return [clone(item) for item in value]
    return value


def dig(value: Any, *path: str, default: Any = None) -> Any:
    """Follow keys through nested dictionaries; give the default where one is missing or null."""
    for step in path:
        if not isinstance(value, dict):
            return default
        value = value.get(step)
    return default if value is None else value


def now() -> datetime:
    """Tell the time, as an aware UTC datetime."""
    return datetime.now(UTC)


def timestamp(moment: datetime | None = None) -> str:
    """Write a metav1.Time: RFC 3339 in UTC, to the second."""
    return (moment or now()).strftime("%Y-%m-%dT%H:%M:%SZ")


def micro_timestamp(moment: datetime | None = None) -> str:
    """Write a metav1.MicroTime: RFC 3339 in UTC, to the microsecond."""
    return (moment or now()).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_time(text: str) -> datetime:
    """Read RFC 3339, with up to nanoseconds as log lines have them.

    Raises:
        ValueError: the text is no timestamp.
    """
    match = _TIMESTAMP.match(text)
    if match is None:
        raise ValueError(f"{text!r} is not an RFC 3339 timestamp")
    seconds, fraction, zone = match.groups()
    micros = (fraction or "0")[:6].ljust(6, "0")
    return datetime.fromisoformat(f"{seconds}.{micros}{'+00:00' if zone == 'Z' else zone}")


def age_seconds(text: str | None) -> float:
    """Tell how long ago a timestamp was, in seconds; 0 for none."""
    return (now() - parse_time(text)).total_seconds() if text else 0.0


def random_suffix(length: int = 5) -> str:
    """Make the random end of a generated name."""
    return "".join(secrets.choice(_NAME_ALPHABET) for _ in range(length))


def safe_encode(number: int) -> str:
    """Write a hash with the alphabet of generated names, one character for each decimal digit."""
    return "".join(_NAME_ALPHABET[ord(digit) % len(_NAME_ALPHABET)] for digit in str(number))


def name_of(item: Object) -> str:
    """Give an object's name."""
    return str(dig(item, "metadata", "name", default=""))


def namespace_of(item: Object) -> str:
    """Give an object's namespace, empty for cluster-scoped ones."""
    return str(dig(item, "metadata", "namespace", default=""))


def uid_of(item: Object) -> str:
    """Give an object's uid."""
    return str(dig(item, "metadata", "uid", default=""))


def labels_of(item: Object) -> dict[str, str]:
    """Give an object's labels."""
    found: dict[str, str] = dig(item, "metadata", "labels", default={})
    return found


def annotations_of(item: Object) -> dict[str, str]:
    """Give an object's annotations."""
    found: dict[str, str] = dig(item, "metadata", "annotations", default={})
    return found


def is_deleting(item: Object) -> bool:
    """Tell whether deletion of an object has begun."""
    return bool(dig(item, "metadata", "deletionTimestamp"))


def controller_of(item: Object) -> Object | None:
    """Give the owner reference that is the controller of an object."""
    for owner in dig(item, "metadata", "ownerReferences", default=[]):
        if owner.get("controller"):
            reference: Object = owner
            return reference
    return None


def condition_of(item: Object, kind: str) -> Object | None:
    """Find a condition by type in an object's status."""
    for condition in dig(item, "status", "conditions", default=[]):
        if condition.get("type") == kind:
            found: Object = condition
            return found
    return None


def set_condition(status: Object, fresh: Object, *, moment_fields: tuple[str, ...] = ()) -> None:
    """Put a condition into a status, keeping its transition time while its value stays the same.

    Args:
        status: The status to change.
        fresh: The condition, without times.
        moment_fields: Further time fields that are set whenever anything about the condition changes.
    """
    conditions = status.setdefault("conditions", [])
    stamp = timestamp()
    for index, known in enumerate(conditions):
        if known.get("type") != fresh["type"]:
            continue
        same = all(known.get(field) == value for field, value in fresh.items())
        if same:
            return
        kept = known.get("lastTransitionTime") if known.get("status") == fresh.get("status") else stamp
        conditions[index] = {**fresh, "lastTransitionTime": kept or stamp, **dict.fromkeys(moment_fields, stamp)}
        return
    conditions.append({**fresh, "lastTransitionTime": stamp, **dict.fromkeys(moment_fields, stamp)})


def every_container(spec: Object) -> Iterator[tuple[str, int, Object]]:
    """Go through a pod spec's containers with the field they are in and their index."""
    for field in ("initContainers", "containers"):
        for index, container in enumerate(spec.get(field) or []):
            yield field, index, container
