"""How `kubectl get pods` sums a pod up: ready containers, one word of status, restarts."""

from collections.abc import Callable
from typing import Any

from streamway.sandbox.cluster.objects import Object, age_seconds, condition_of, dig, is_deleting, name_of

POD_COLUMNS = (
    "Name", "Ready", "Status", "Restarts", "Age", "+IP", "+Node", "+Nominated Node", "+Readiness Gates",
)  # fmt: skip


def pod_cells(pod: Object, duration: Callable[[float], str]) -> list[Any]:
    """Give a pod's name, ready count, status and restarts.

    Args:
        pod: The pod.
        duration: Writes a duration in seconds for people.
    """
    status = pod.get("status") or {}
    containers = status.get("containerStatuses") or []
    ready = sum(1 for one in containers if one.get("ready"))
    total = len(pod["spec"].get("containers") or [])
    return [name_of(pod), f"{ready}/{total}", pod_reason(pod), _restarts(status, duration)]


def _restarts(status: Object, duration: Callable[[float], str]) -> str:
    containers = status.get("containerStatuses") or []
    count = sum(one.get("restartCount", 0) for one in containers)
    ended = [dig(one, "lastState", "terminated", "finishedAt") for one in containers]
    last = max((moment for moment in ended if moment), default=None)
    return f"{count} ({duration(age_seconds(last))} ago)" if count and last else str(count)


def pod_reason(pod: Object) -> str:
    """Give the one word for a pod: its phase, or what keeps a container from running."""
    status = pod.get("status") or {}
    reason = status.get("reason") or status.get("phase") or "Unknown"
    scheduled = condition_of(pod, "PodScheduled") or {}
    if scheduled.get("reason") == "SchedulingGated":
        reason = "SchedulingGated"
    reason = _init_reason(pod, status) or _container_reason(pod, status, reason)
    if is_deleting(pod):
        return "Terminating" if status.get("phase") not in ("Succeeded", "Failed") else reason
    return reason


def _init_reason(pod: Object, status: Object) -> str:
    total = len(pod["spec"].get("initContainers") or [])
    sidecars = {one["name"] for one in pod["spec"].get("initContainers") or [] if one.get("restartPolicy") == "Always"}
    for index, one in enumerate(status.get("initContainerStatuses") or []):
        state = one.get("state") or {}
        terminated, waiting = state.get("terminated"), state.get("waiting")
        if terminated and terminated.get("exitCode") == 0:
            continue
        if one.get("name") in sidecars and one.get("started"):
            continue
        if terminated:
            return f"Init:{terminated.get('reason') or 'ExitCode:' + str(terminated.get('exitCode'))}"
        if waiting and waiting.get("reason") not in (None, "", "PodInitializing"):
            return f"Init:{waiting['reason']}"
        return f"Init:{index}/{total}"
    return ""


def _container_reason(pod: Object, status: Object, reason: str) -> str:
    running = False
    for one in reversed(status.get("containerStatuses") or []):
        state = one.get("state") or {}
        waiting, terminated = state.get("waiting"), state.get("terminated")
        if waiting and waiting.get("reason"):
            reason = waiting["reason"]
        elif terminated:
            reason = terminated.get("reason") or f"ExitCode:{terminated.get('exitCode')}"
        elif one.get("ready") and state.get("running"):
            running = True
    if reason == "Completed" and running:
        ready = condition_of(pod, "Ready") or {}
        return "Running" if ready.get("status") == "True" else "NotReady"
    return reason
