"""The columns that `kubectl get` shows of Jobs and CronJobs."""

from collections.abc import Callable
from typing import Any

from streamway.sandbox.cluster.objects import Object, age_seconds, condition_of, dig, name_of, parse_time

JOB_COLUMNS = ("Name", "Status", "Completions", "Duration", "Age", "+Containers", "+Images", "+Selector")
CRON_JOB_COLUMNS = (
    "Name",
    "Schedule",
    "Timezone",
    "Suspend",
    "Active",
    "Last Schedule",
    "Age",
    "+Containers",
    "+Images",
    "+Selector",
)

Duration = Callable[[float], str]


def job_cells(item: Object, duration: Duration) -> list[Any]:
    """Give a Job's cells."""
    status = item.get("status") or {}
    ended = next((kind for kind in ("Complete", "Failed") if condition_of(item, kind)), "")
    began, until = status.get("startTime"), status.get("completionTime")
    took = ""
    if began and until:
        took = duration((parse_time(until) - parse_time(began)).total_seconds())
    elif began:
        took = duration(age_seconds(began))
    labels = dig(item, "spec", "selector", "matchLabels", default={})
    selector = ",".join(f"{key}={value}" for key, value in sorted(labels.items()))
    done = f"{status.get('succeeded', 0)}/{dig(item, 'spec', 'completions', default=1)}"
    return [name_of(item), ended or "Running", done, took, _age(item, duration), *_containers(item["spec"]), selector]


def cron_job_cells(item: Object, duration: Duration) -> list[Any]:
    """Give a CronJob's cells."""
    spec, status = item["spec"], item.get("status") or {}
    last = status.get("lastScheduleTime")
    return [
        name_of(item),
        spec["schedule"],
        spec.get("timeZone") or "<none>",
        str(spec.get("suspend", False)),
        len(status.get("active") or ()),
        duration(age_seconds(last)) if last else "<none>",
        _age(item, duration),
        *_containers(spec["jobTemplate"]["spec"]),
        "<none>",
    ]


def _age(item: Object, duration: Duration) -> str:
    return duration(age_seconds(dig(item, "metadata", "creationTimestamp")))


def _containers(spec: Object) -> tuple[str, str]:
    containers = dig(spec, "template", "spec", "containers", default=[])
    return ",".join(one["name"] for one in containers), ",".join(one.get("image", "") for one in containers)
