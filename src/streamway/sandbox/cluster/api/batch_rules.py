"""What makes a Job or a CronJob invalid."""

from streamway.cron import Cron
from streamway.errors import LaunchError
from streamway.sandbox.cluster.api.pod_rules import check_pod_spec
from streamway.sandbox.cluster.api.statuses import Cause, invalid, required, unsupported
from streamway.sandbox.cluster.objects import Object, dig, name_of

_POLICIES = ["Allow", "Forbid", "Replace"]
_COUNTS = ("activeDeadlineSeconds", "backoffLimit", "completions", "parallelism", "ttlSecondsAfterFinished")
# The controller adds eleven characters for a Job's own name, which may have 63.
_LONGEST_NAME = 52


def check_job(item: Object, old: Object | None) -> list[Cause]:
    """Check a Job."""
    causes = _job_spec(item["spec"], "spec")
    if old is not None and dig(old, "spec", "template") != dig(item, "spec", "template"):
        causes.append(invalid("spec.template", "", "field is immutable"))
    return causes


def check_cron_job(item: Object, old: Object | None) -> list[Cause]:
    """Check a CronJob."""
    spec = item["spec"]
    causes = _job_spec(dig(spec, "jobTemplate", "spec", default={}), "spec.jobTemplate.spec")
    causes += _schedule(spec)
    if old is None and len(name_of(item)) > _LONGEST_NAME:
        causes.append(invalid("metadata.name", name_of(item), f"must be no more than {_LONGEST_NAME} characters"))
    if spec["concurrencyPolicy"] not in _POLICIES:
        causes.append(unsupported("spec.concurrencyPolicy", spec["concurrencyPolicy"], _POLICIES))
    return causes


def _schedule(spec: Object) -> list[Cause]:
    if not spec.get("schedule"):
        return [required("spec.schedule")]
    if "TZ" in spec["schedule"]:
        return [invalid("spec.schedule", spec["schedule"], "cannot use TZ or CRON_TZ in schedule, use timeZone field")]
    try:
        Cron.parse(spec["schedule"], zone=spec.get("timeZone", ""))
    except LaunchError as error:
        return [invalid("spec.schedule", spec["schedule"], error.problem)]
    return []


def _job_spec(spec: Object, path: str) -> list[Cause]:
    causes = [
        invalid(f"{path}.{name}", spec[name], "must be greater than or equal to 0")
        for name in _COUNTS
        if spec.get(name, 0) < 0
    ]
    pod = dig(spec, "template", "spec")
    if not pod:
        return [*causes, required(f"{path}.template.spec.containers")]
    causes += check_pod_spec(pod, f"{path}.template.spec")
    if pod.get("restartPolicy", "Always") == "Always":
        causes.append(required(f"{path}.template.spec.restartPolicy", 'valid values: "OnFailure", "Never"'))
    return causes
