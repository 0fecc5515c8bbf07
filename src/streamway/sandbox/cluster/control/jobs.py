"""Jobs: pods that are to end well, tried again where they do not, until a limit of tries or of time."""

from collections.abc import Callable, Iterable

from streamway.sandbox.cluster.api.deletion import delete
from streamway.sandbox.cluster.api.kinds import JOB, POD
from streamway.sandbox.cluster.api.registry import Registry
from streamway.sandbox.cluster.api.statuses import ApiError
from streamway.sandbox.cluster.api.store import Change
from streamway.sandbox.cluster.control.events import Recorder
from streamway.sandbox.cluster.control.loop import Key
from streamway.sandbox.cluster.control.owned import CONTROLLER, claim, create_pod, is_active, keys_of
from streamway.sandbox.cluster.control.replicasets import is_ready
from streamway.sandbox.cluster.objects import (
    Object,
    age_seconds,
    clone,
    condition_of,
    dig,
    is_deleting,
    name_of,
    namespace_of,
    set_condition,
    timestamp,
)

_LONGEST_BACKOFF_SECONDS = 360.0
_REFUSED_SECONDS = 1.0


class JobController:
    """Runs the pods of every Job.

    Args:
        registry: The cluster's objects.
        backoff_seconds: Gives the wait before a pod that failed is replaced for the first time; it doubles.
    """

    def __init__(self, registry: Registry, backoff_seconds: Callable[[], float]) -> None:
        self._registry = registry
        self._backoff_seconds = backoff_seconds
        self._recorder = Recorder(registry, "job-controller")

    def keys_for(self, change: Change) -> Iterable[Key]:
        """React to Jobs and to their pods."""
        return keys_of(change, JOB, POD)

    def reconcile(self, key: Key) -> float | None:
        """Bring one Job on by what its pods have come to."""
        job = self._registry.store.get(JOB, *key)
        if job is None or is_deleting(job):
            return None
        if ended := end_of(job):
            return self._expire(job, ended)
        if job["spec"]["suspend"]:
            return None
        pods = claim(self._registry, job, POD)
        status = _count(job, pods)
        again = None
        if (failure := _failure(job, status, pods)) is not None:
            self._end(job, status, pods, "Failed", *failure)
        elif status.get("succeeded", 0) >= job["spec"]["completions"]:
            self._end(job, status, pods, "Complete", "CompletionsReached", "Reached expected number of succeeded pods")
        else:
            again = self._go_on(job, status, pods)
        self._registry.write_status(JOB, *key, status, CONTROLLER)
        return again

    def _expire(self, job: Object, ended: Object) -> float | None:
        """Delete a Job that has ended, where a time was set for it."""
        keep = dig(job, "spec", "ttlSecondsAfterFinished")
        if keep is None:
            return None
        left = float(keep) - age_seconds(ended["lastTransitionTime"])
        if left > 0:
            return left
        options = {"propagationPolicy": "Background"}
        delete(self._registry, JOB, namespace_of(job), name_of(job), options, CONTROLLER)
        return None

    def _end(self, job: Object, status: Object, pods: list[Object], kind: str, reason: str, message: str) -> None:
        for pod in filter(is_active, pods):
            delete(self._registry, POD, namespace_of(pod), name_of(pod), {}, CONTROLLER)
        for name in ("active", "ready"):
            status.pop(name, None)
        set_condition(status, {"type": kind, "status": "True", "reason": reason, "message": message})
        if kind == "Complete":
            status["completionTime"] = timestamp()
            self._recorder.normal(job, "Completed", "Job completed")
        else:
            self._recorder.warning(job, reason, message)

    def _go_on(self, job: Object, status: Object, pods: list[Object]) -> float | None:
        """Create the pods that are missing, and say when to look again."""
        waits = _deadline_left(job, status)
        spec, active = job["spec"], status.get("active", 0)
        missing = min(spec["parallelism"], spec["completions"] - status.get("succeeded", 0)) - active
        if missing <= 0:
            return min(waits, default=None)
        if (left := self._backoff_left(pods)) > 0:
            return min([left, *waits])
        for _ in range(missing):
            try:
                pod = create_pod(self._registry, job)
            except ApiError as error:
                self._recorder.warning(job, "FailedCreate", f"Error creating: {error.message}")
                return min([_REFUSED_SECONDS, *waits])
            self._recorder.normal(job, "SuccessfulCreate", f"Created pod: {name_of(pod)}")
            status["active"] = status.get("active", 0) + 1
        return min(waits, default=None)

    def _backoff_left(self, pods: list[Object]) -> float:
        failed = [pod for pod in pods if dig(pod, "status", "phase") == "Failed"]
        if not failed:
            return 0.0
        wait = min(_LONGEST_BACKOFF_SECONDS, self._backoff_seconds() * 2.0 ** (len(failed) - 1))
        return wait - min(map(_ended_seconds, failed))


def end_of(job: Object) -> Object | None:
    """Give the condition with which a Job has ended; None for one that goes on."""
    return condition_of(job, "Complete") or condition_of(job, "Failed")


def _count(job: Object, pods: list[Object]) -> Object:
    active = [pod for pod in pods if is_active(pod)]
    phases = [dig(pod, "status", "phase") for pod in pods]
    counts = {
        "active": len(active),
        "failed": phases.count("Failed"),
        "ready": sum(map(is_ready, active)),
        "succeeded": phases.count("Succeeded"),
    }
    status: Object = {key: value for key, value in clone(job.get("status") or {}).items() if key not in counts}
    status.setdefault("startTime", timestamp())
    return status | {name: count for name, count in counts.items() if count}


def _failure(job: Object, status: Object, pods: list[Object]) -> tuple[str, str] | None:
    """Say why a Job is given up; None where it is not."""
    if any(left <= 0 for left in _deadline_left(job, status)):
        return "DeadlineExceeded", "Job was active longer than specified deadline"
    if _are_too_many(job, status, pods):
        return "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    return None


def _are_too_many(job: Object, status: Object, pods: list[Object]) -> bool:
    """Tell whether pods have failed, or a container was restarted, as often as a Job bears."""
    limit = job["spec"]["backoffLimit"]
    restarts = sum(_restarts(pod) for pod in pods if is_active(pod))
    return status.get("failed", 0) > limit or restarts >= max(1, limit)


def _deadline_left(job: Object, status: Object) -> list[float]:
    """Give the seconds that a Job has left, as a list that is empty where it has all the time in the world."""
    deadline = dig(job, "spec", "activeDeadlineSeconds")
    return [] if deadline is None else [deadline - age_seconds(status["startTime"])]


def _restarts(pod: Object) -> int:
    return sum(one.get("restartCount", 0) for one in dig(pod, "status", "containerStatuses", default=[]))


def _ended_seconds(pod: Object) -> float:
    """Tell how long ago a pod's last container ended."""
    statuses = dig(pod, "status", "containerStatuses", default=[])
    ends = [at for one in statuses if (at := dig(one, "state", "terminated", "finishedAt"))]
    return min((age_seconds(at) for at in ends), default=age_seconds(dig(pod, "metadata", "creationTimestamp")))
