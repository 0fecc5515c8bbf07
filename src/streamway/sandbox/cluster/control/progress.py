"""Where a rollout stands: a Deployment's counts and its conditions Available, Progressing and ReplicaFailure."""

from streamway.sandbox.cluster.control import rollouts
from streamway.sandbox.cluster.objects import (
    Object,
    age_seconds,
    annotations_of,
    clone,
    condition_of,
    dig,
    name_of,
    set_condition,
)

_TIMED_OUT = "ProgressDeadlineExceeded"
_DONE = "NewReplicaSetAvailable"


def deployment_status(
    deployment: Object, new: Object | None, old: list[Object], *, terminating: int
) -> tuple[Object, float | None]:
    """Work out a Deployment's status.

    Args:
        deployment: The Deployment.
        new: The ReplicaSet of its current template.
        old: Its other ReplicaSets.
        terminating: How many of its pods are being deleted.

    Returns:
        The status, and the seconds after which the progress deadline has to be looked at again.
    """
    before = deployment.get("status") or {}
    status: Object = {"conditions": clone(before.get("conditions") or [])}
    status["observedGeneration"] = dig(deployment, "metadata", "generation", default=0)
    counts = _counts(deployment, new, old)
    status |= {name: count for name, count in counts.items() if count}
    status["terminatingReplicas"] = terminating
    if "collisionCount" in before:
        status["collisionCount"] = before["collisionCount"]
    _set_available(deployment, status)
    again = _set_progressing(deployment, status, before, new)
    _set_failure(status, new)
    return status, again


def _counts(deployment: Object, new: Object | None, old: list[Object]) -> dict[str, int]:
    everything = [*old, *([new] if new else [])]

    def total(name: str) -> int:
        return sum(int(dig(one, "status", name, default=0)) for one in everything)

    available = total("availableReplicas")
    wanted = max(rollouts.wanted_replicas(deployment), sum(rollouts.wanted_replicas(one) for one in everything))
    return {
        "replicas": total("replicas"),
        "updatedReplicas": int(dig(new or {}, "status", "replicas", default=0)),
        "readyReplicas": total("readyReplicas"),
        "availableReplicas": available,
        "unavailableReplicas": max(0, wanted - available),
    }


def _set_available(deployment: Object, status: Object) -> None:
    _, unavailable = rollouts.bounds(deployment)
    enough = status.get("availableReplicas", 0) >= rollouts.wanted_replicas(deployment) - unavailable
    condition = {
        "type": "Available",
        "status": "True" if enough else "False",
        "reason": "MinimumReplicasAvailable" if enough else "MinimumReplicasUnavailable",
        "message": f"Deployment {'has' if enough else 'does not have'} minimum availability.",
    }
    set_condition(status, condition, moment_fields=("lastUpdateTime",))


def _set_progressing(deployment: Object, status: Object, before: Object, new: Object | None) -> float | None:
    deadline = dig(deployment, "spec", "progressDeadlineSeconds")
    if deadline is None:
        return None
    known = condition_of({"status": status}, "Progressing")
    if dig(deployment, "spec", "paused"):
        _progressing(status, "Unknown", "DeploymentPaused", "Deployment is paused")
        return None
    subject = f'ReplicaSet "{name_of(new)}"' if new else f'Deployment "{name_of(deployment)}"'
    if known is not None and known["reason"] == _DONE and _is_settled(status, known, new):
        return None
    if _is_complete(deployment, status):
        _progressing(status, "True", _DONE, f"{subject} has successfully progressed.")
        return None
    if known is None or (new is not None and name_of(new) not in known["message"]):
        _begin(status, new, subject)
        return float(deadline)
    if _has_moved(status, before):
        _refresh(status, f"{subject} is progressing.")
        return float(deadline)
    if known["reason"] == _DONE:
        return None
    left = float(deadline) - age_seconds(known.get("lastUpdateTime"))
    if left <= 0 or known["reason"] == _TIMED_OUT:
        _progressing(status, "False", _TIMED_OUT, f"{subject} has timed out progressing.")
        return None
    return left + 0.1


def _is_settled(status: Object, known: Object, new: Object | None) -> bool:
    """Tell whether a finished rollout is still the last one: a pod that fails later does not reopen it."""
    same = new is None or name_of(new) in known["message"]
    return same and status.get("replicas", 0) == status.get("updatedReplicas", 0)


def _begin(status: Object, new: Object | None, subject: str) -> None:
    if new is None:
        _progressing(status, "True", "ReplicaSetUpdated", f"{subject} is progressing.")
    elif rollouts.REVISION_HISTORY in annotations_of(new):
        _progressing(status, "True", "FoundNewReplicaSet", f'Found new replica set "{name_of(new)}"')
    else:
        _progressing(status, "True", "NewReplicaSetCreated", f'Created new replica set "{name_of(new)}"')


def _is_complete(deployment: Object, status: Object) -> bool:
    wanted = rollouts.wanted_replicas(deployment)
    return all(status.get(name, 0) == wanted for name in ("replicas", "updatedReplicas", "availableReplicas"))


def _has_moved(status: Object, before: Object) -> bool:
    """Tell whether a rollout is nearer to its end than before."""
    for name in ("updatedReplicas", "readyReplicas", "availableReplicas"):
        if status.get(name, 0) > before.get(name, 0):
            return True
    old_now = status.get("replicas", 0) - status.get("updatedReplicas", 0)
    old_before = before.get("replicas", 0) - before.get("updatedReplicas", 0)
    return bool(old_now < old_before)


def _refresh(status: Object, text: str) -> None:
    """Say that there is progress, and when, even where the words stay the same."""
    known = condition_of({"status": status}, "Progressing")
    if known is not None:
        known.pop("lastUpdateTime", None)
        known["message"] = ""
    _progressing(status, "True", "ReplicaSetUpdated", text)


def _progressing(status: Object, value: str, reason: str, text: str) -> None:
    condition = {"type": "Progressing", "status": value, "reason": reason, "message": text}
    set_condition(status, condition, moment_fields=("lastUpdateTime",))


def _set_failure(status: Object, new: Object | None) -> None:
    """Pass on that pods of the new ReplicaSet cannot be created."""
    failure = condition_of(new or {}, "ReplicaFailure")
    if failure is not None:
        fresh = {key: failure[key] for key in ("type", "status", "reason", "message")}
        set_condition(status, fresh, moment_fields=("lastUpdateTime",))
        return
    status["conditions"] = [one for one in status["conditions"] if one["type"] != "ReplicaFailure"]
