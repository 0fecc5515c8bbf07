"""CronJobs: a Job at every time of a schedule. What time it is can be moved by a test (see sandbox.clock)."""

from collections.abc import Iterable
from datetime import datetime, timedelta

from streamway.cron import Cron
from streamway.sandbox.clock import Clock
from streamway.sandbox.cluster.api.deletion import delete
from streamway.sandbox.cluster.api.kinds import CRON_JOB, JOB
from streamway.sandbox.cluster.api.registry import Registry
from streamway.sandbox.cluster.api.store import Change
from streamway.sandbox.cluster.control.events import Recorder
from streamway.sandbox.cluster.control.jobs import end_of
from streamway.sandbox.cluster.control.loop import Key
from streamway.sandbox.cluster.control.owned import CONTROLLER, keys_of, owner_reference
from streamway.sandbox.cluster.objects import (
    Object,
    clone,
    controller_of,
    dig,
    is_deleting,
    name_of,
    namespace_of,
    parse_time,
    timestamp,
    uid_of,
)

# How often a schedule is looked at, because its clock may have been moved.
_LOOK_SECONDS = 0.5
_SCHEDULED = "batch.kubernetes.io/cronjob-scheduled-timestamp"


class CronJobController:
    """Creates the Jobs of every CronJob, and removes those that have ended.

    Args:
        registry: The cluster's objects.
        clock: What time it is.
    """

    def __init__(self, registry: Registry, clock: Clock) -> None:
        self._registry = registry
        self._clock = clock
        self._recorder = Recorder(registry, "cronjob-controller")

    def keys_for(self, change: Change) -> Iterable[Key]:
        """React to CronJobs and to their Jobs."""
        return keys_of(change, CRON_JOB, JOB)

    def reconcile(self, key: Key) -> float | None:
        """Start what is due, and tell what runs."""
        cron_job = self._registry.store.get(CRON_JOB, *key)
        if cron_job is None or is_deleting(cron_job):
            return None
        jobs = self._jobs(cron_job)
        status: Object = clone(cron_job.get("status") or {})
        self._forget_old(cron_job, jobs, status)
        due = None if cron_job["spec"]["suspend"] else self._due(cron_job, status)
        if due is not None and self._make_room(cron_job, jobs, due):
            self._start(cron_job, due)
            status["lastScheduleTime"] = timestamp(due)
        running = [job for job in self._jobs(cron_job) if end_of(job) is None]
        status |= {"active": [_reference(job) for job in running]}
        if not running:
            del status["active"]
        self._registry.write_status(CRON_JOB, *key, status, CONTROLLER)
        return _LOOK_SECONDS

    def _jobs(self, cron_job: Object) -> list[Object]:
        found = self._registry.store.items(JOB, namespace_of(cron_job))
        return [job for job in found if (controller_of(job) or {}).get("uid") == uid_of(cron_job)]

    def _due(self, cron_job: Object, status: Object) -> datetime | None:
        """Give the last time of the schedule that has come and was not acted on; the ones before it are missed."""
        spec = cron_job["spec"]
        cron = Cron.parse(spec["schedule"], zone=spec.get("timeZone", ""))
        now, due = self._clock.now(), None
        since = parse_time(status.get("lastScheduleTime") or cron_job["metadata"]["creationTimestamp"])
        deadline = spec.get("startingDeadlineSeconds")
        if deadline is not None:
            since = max(since, now - timedelta(seconds=deadline))
        for at in cron.upcoming(since, 100):
            if at > now:
                break
            due = at
        return due

    def _make_room(self, cron_job: Object, jobs: list[Object], due: datetime) -> bool:
        """Tell whether a Job may begin, after ending what it is to replace."""
        running, policy = [job for job in jobs if end_of(job) is None], cron_job["spec"]["concurrencyPolicy"]
        if running and policy == "Forbid":
            text = "Not starting job because prior execution is running and concurrency policy is Forbid"
            self._recorder.normal(cron_job, "JobAlreadyActive", text)
            return False
        for job in running if policy == "Replace" else ():
            self._delete(cron_job, job)
        return all(name_of(job) != _job_name(cron_job, due) for job in jobs)

    def _start(self, cron_job: Object, due: datetime) -> None:
        template = clone(cron_job["spec"]["jobTemplate"])
        given = template.get("metadata", {})
        metadata = {
            "name": _job_name(cron_job, due),
            "labels": given.get("labels") or {},
            "annotations": {**(given.get("annotations") or {}), _SCHEDULED: timestamp(due)},
            "ownerReferences": [owner_reference(cron_job)],
        }
        body = {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": template["spec"]}
        job = self._registry.create(JOB, namespace_of(cron_job), body, CONTROLLER)
        self._recorder.normal(cron_job, "SuccessfulCreate", f"Created job {name_of(job)}")

    def _forget_old(self, cron_job: Object, jobs: list[Object], status: Object) -> None:
        """Note how Jobs have ended, and delete those beyond the history that shall be kept."""
        known = {reference["uid"] for reference in status.get("active") or ()}
        for kind, limit in (("Complete", "successfulJobsHistoryLimit"), ("Failed", "failedJobsHistoryLimit")):
            ended = [job for job in jobs if (end_of(job) or {}).get("type") == kind]
            ended.sort(key=lambda job: str(dig(job, "status", "startTime", default="")))
            for job in ended:
                if uid_of(job) in known:
                    text = f"Saw completed job: {name_of(job)}, condition: {kind}"
                    self._recorder.normal(cron_job, "SawCompletedJob", text)
                if kind == "Complete":
                    status["lastSuccessfulTime"] = job["status"]["completionTime"]
            for job in ended[: max(0, len(ended) - cron_job["spec"][limit])]:
                self._delete(cron_job, job)

    def _delete(self, cron_job: Object, job: Object) -> None:
        options = {"propagationPolicy": "Background"}
        delete(self._registry, JOB, namespace_of(job), name_of(job), options, CONTROLLER)
        self._recorder.normal(cron_job, "SuccessfulDelete", f"Deleted job {name_of(job)}")


def _job_name(cron_job: Object, due: datetime) -> str:
    """Name the Job of one time, so that there is one: the minutes since 1970 tell it."""
    return f"{name_of(cron_job)}-{int(due.timestamp()) // 60}"


def _reference(job: Object) -> Object:
    metadata = job["metadata"]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        **{key: metadata[key] for key in ("name", "namespace", "resourceVersion", "uid")},
    }
