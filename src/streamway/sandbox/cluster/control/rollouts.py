"""The arithmetic and the bookkeeping of a Deployment's rollout: revisions, surges, who may be scaled by how much."""

import hashlib
import json
import math
from typing import Any

from streamway.sandbox.cluster.objects import Object, annotations_of, clone, dig, name_of, safe_encode

REVISION = "deployment.kubernetes.io/revision"
REVISION_HISTORY = "deployment.kubernetes.io/revision-history"
DESIRED = "deployment.kubernetes.io/desired-replicas"
MAXIMUM = "deployment.kubernetes.io/max-replicas"
TEMPLATE_HASH = "pod-template-hash"

# Annotations of a Deployment that say nothing about a revision.
_NOT_COPIED = frozenset(
    ("kubectl.kubernetes.io/last-applied-configuration", REVISION, REVISION_HISTORY, DESIRED, MAXIMUM)
)


def wanted_replicas(item: Object) -> int:
    """Give the replicas that an object's spec asks for."""
    return int(dig(item, "spec", "replicas", default=0))


def available_replicas(item: Object) -> int:
    """Give the available replicas of an object's status."""
    return int(dig(item, "status", "availableReplicas", default=0))


def revision_of(item: Object) -> int:
    """Give the revision of a Deployment or ReplicaSet, 0 for none."""
    return int(annotations_of(item).get(REVISION) or 0)


def bounds(deployment: Object) -> tuple[int, int]:
    """Give how many pods may exist beyond the wanted ones, and how many of those may be missing."""
    if dig(deployment, "spec", "strategy", "type") != "RollingUpdate":
        return 0, 0
    rolling = dig(deployment, "spec", "strategy", "rollingUpdate", default={})
    replicas = wanted_replicas(deployment)
    surge = _share(rolling.get("maxSurge", "25%"), replicas, round_up=True)
    unavailable = _share(rolling.get("maxUnavailable", "25%"), replicas, round_up=False)
    if surge == 0 and unavailable == 0:
        unavailable = 1
    return surge, min(unavailable, replicas)


def _share(value: Any, total: int, *, round_up: bool) -> int:
    if isinstance(value, int):
        return value
    exact = int(value.rstrip("%")) * total / 100
    return math.ceil(exact) if round_up else math.floor(exact)


def bare_template(item: Object) -> Object:
    """Give a pod template without the label that the Deployment controller adds to it."""
    template: Object = clone(item["spec"]["template"])
    labels = template.get("metadata", {}).get("labels")
    if labels:
        labels.pop(TEMPLATE_HASH, None)
    return template


def template_hash(deployment: Object) -> str:
    """Give the hash that names a template's ReplicaSet."""
    text = json.dumps(bare_template(deployment), sort_keys=True)
    text += str(dig(deployment, "status", "collisionCount", default=""))
    return safe_encode(int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big"))


def split_sets(deployment: Object, sets: list[Object]) -> tuple[Object | None, list[Object]]:
    """Tell the ReplicaSet of the current template from the others, which come oldest first."""
    wanted = bare_template(deployment)
    ordered = sorted(sets, key=lambda one: (dig(one, "metadata", "creationTimestamp", default=""), name_of(one)))
    new = next((one for one in ordered if bare_template(one) == wanted), None)
    return new, [one for one in ordered if one is not new]


def set_annotations(deployment: Object, known: dict[str, str], revision: int) -> dict[str, str]:
    """Give the annotations of a ReplicaSet that has a revision now."""
    copied = {key: value for key, value in annotations_of(deployment).items() if key not in _NOT_COPIED}
    annotations = {**known, **copied, REVISION: str(revision)}
    before = known.get(REVISION)
    if before and before != str(revision):
        history = [one for one in known.get(REVISION_HISTORY, "").split(",") if one]
        annotations[REVISION_HISTORY] = ",".join([*history, before])
    return annotations


def growth_of_new(deployment: Object, new: Object, everything: list[Object]) -> int:
    """Give the replicas that the new ReplicaSet may have now, without more pods in all than allowed."""
    replicas = wanted_replicas(deployment)
    if dig(deployment, "spec", "strategy", "type") == "Recreate":
        return replicas
    surge, _ = bounds(deployment)
    room = replicas + surge - sum(wanted_replicas(one) for one in everything)
    current = wanted_replicas(new)
    return current if room <= 0 else current + min(room, replicas - current)


def shrink_of_old(deployment: Object, new: Object, old: list[Object]) -> dict[str, int]:
    """Give the replicas that old ReplicaSets shall have now, by name, without making too many pods unavailable.

    Pods that are not available anyway go first, then available ones as far as the new ones allow.
    """
    everything = [*old, new]
    _, unavailable = bounds(deployment)
    least = wanted_replicas(deployment) - unavailable
    total = sum(wanted_replicas(one) for one in everything)
    budget = total - least - (wanted_replicas(new) - available_replicas(new))
    sizes = {name_of(one): wanted_replicas(one) for one in old}
    if budget <= 0:
        return sizes
    for one in old:
        sick = max(0, sizes[name_of(one)] - available_replicas(one))
        removed = min(budget, sick)
        sizes[name_of(one)] -= removed
        budget -= removed
    spare = sum(available_replicas(one) for one in everything) - least
    for one in old:
        removed = max(0, min(spare, sizes[name_of(one)]))
        sizes[name_of(one)] -= removed
        spare -= removed
    return sizes
