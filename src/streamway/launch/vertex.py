"""Vertex AI Pipelines: runs and schedules, by the REST transport of Google's own client.

REST, because it goes through proxies and private endpoints alike. The client's low-level services are used, not its
PipelineJob: that one creates a bucket when it finds none, and asks for rights to projects that a launcher lacks.
"""

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

import requests
import yaml

from streamway.cron import Cron
from streamway.errors import AlreadyThereError, LaunchError, ServiceUnreachableError
from streamway.launch.service import (
    CANCELLED,
    FAILED,
    QUEUED,
    REQUEST_LABEL,
    RUNNING,
    SUCCEEDED,
    RunRequest,
    RunStatus,
    ScheduleRequest,
    ScheduleStatus,
    TaskStatus,
    digest_of,
    id_part,
    in_order,
)

logger = logging.getLogger("streamway.launch")

ENDPOINT_VARIABLE = "CLOUDSDK_API_ENDPOINT_OVERRIDES_AIPLATFORM"
"""gcloud's own variable for another address of this API, such as a Private Service Connect endpoint."""

_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
_CONSOLE = "https://console.cloud.google.com/vertex-ai/locations/{location}/pipelines/{kind}/{id}?project={project}"
_CALL_SECONDS = 60.0
_STATES = {
    "PIPELINE_STATE_QUEUED": QUEUED,
    "PIPELINE_STATE_PENDING": QUEUED,
    "PIPELINE_STATE_SUCCEEDED": SUCCEEDED,
    "PIPELINE_STATE_FAILED": FAILED,
    "PIPELINE_STATE_CANCELLED": CANCELLED,
}
# What google-cloud-aiplatform asks for in a simple list; the rest of a job is its whole compiled pipeline.
_LISTED_FIELDS = ("name", "state", "display_name", "create_time", "start_time", "end_time", "update_time", "labels")


class VertexService:
    """Vertex AI Pipelines of one project and location.

    Args:
        project: Project id; empty for the one of the credentials, or of GOOGLE_CLOUD_PROJECT.
        location: Region, such as us-central1.
        endpoint: Another address of the API; empty for ENDPOINT_VARIABLE, or Google's own.

    Raises:
        LaunchError: there are no credentials, or no project.
    """

    def __init__(self, *, project: str = "", location: str, endpoint: str = "") -> None:
        from google.cloud import aiplatform_v1

        self._types = aiplatform_v1
        endpoint = endpoint or os.environ.get(ENDPOINT_VARIABLE, "")
        self._endpoint = endpoint.rstrip("/") or f"https://{location}-aiplatform.googleapis.com"
        credentials, found_project = _credentials(self._endpoint)
        self._project = project or found_project or os.environ.get("GOOGLE_CLOUD_PROJECT", "")
        if not self._project:
            raise LaunchError(
                "No Google Cloud project is known: launch.project is empty and the credentials name none.",
                next_step="Set launch.project in the configuration, or GOOGLE_CLOUD_PROJECT.",
            )
        self._location = location
        options = {"credentials": credentials, "transport": "rest", "client_options": {"api_endpoint": self._endpoint}}
        self._jobs = aiplatform_v1.PipelineServiceClient(**options)
        self._schedules = aiplatform_v1.ScheduleServiceClient(**options)

    @property
    def place(self) -> str:
        return f"projects/{self._project}/locations/{self._location}"

    def create_run(self, request: RunRequest, run_id: str) -> RunStatus:
        job = self._job(request)
        with _worded(f"The run {run_id} in {self.place}"):
            created = self._jobs.create_pipeline_job(
                parent=self.place, pipeline_job=job, pipeline_job_id=run_id, timeout=_CALL_SECONDS
            )
        return self._run(_as_json(created))

    def find_run(self, run_id: str) -> RunStatus | None:
        from google.api_core import exceptions

        with _worded(f"The run {run_id} in {self.place}"):
            try:
                found = self._jobs.get_pipeline_job(name=self._name("pipelineJobs", run_id), timeout=_CALL_SECONDS)
            except exceptions.NotFound:
                return None
        return self._run(_as_json(found))

    def list_runs(self, *, limit: int, digest: str = "") -> tuple[RunStatus, ...]:
        request = {
            "parent": self.place,
            "order_by": "create_time desc",
            "page_size": min(limit, 100),
            "read_mask": {"paths": list(_LISTED_FIELDS)},
            **({"filter": f"labels.{REQUEST_LABEL}={digest}"} if digest else {}),
        }
        found = []
        with _worded(f"The runs in {self.place}"):
            for job in self._jobs.list_pipeline_jobs(request=request, timeout=_CALL_SECONDS):
                found.append(self._run(_as_json(job)))
                if len(found) == limit:
                    break
        return tuple(found)

    def cancel_run(self, run_id: str) -> None:
        with _worded(f"The run {run_id} in {self.place}"):
            self._jobs.cancel_pipeline_job(name=self._name("pipelineJobs", run_id), timeout=_CALL_SECONDS)

    def create_schedule(self, request: ScheduleRequest) -> str:
        schedule = {
            "display_name": request.name,
            "cron": str(request.cron),
            "max_concurrent_run_count": request.most_at_once,
            "create_pipeline_job_request": {"parent": self.place, "pipeline_job": self._job(request.run)},
            **({"end_time": request.end} if request.end else {}),
        }
        with _worded(f"The schedule {request.name} in {self.place}"):
            created = self._schedules.create_schedule(parent=self.place, schedule=schedule, timeout=_CALL_SECONDS)
        return str(created.name).rpartition("/")[2]

    def list_schedules(self) -> tuple[ScheduleStatus, ...]:
        with _worded(f"The schedules in {self.place}"):
            found = self._schedules.list_schedules(parent=self.place, timeout=_CALL_SECONDS)
            return tuple(self._schedule(_as_json(schedule)) for schedule in found)

    def find_schedule(self, schedule_id: str) -> ScheduleStatus | None:
        from google.api_core import exceptions

        with _worded(f"The schedule {schedule_id} in {self.place}"):
            try:
                found = self._schedules.get_schedule(name=self._name("schedules", schedule_id), timeout=_CALL_SECONDS)
            except exceptions.NotFound:
                return None
        return self._schedule(_as_json(found))

    def pause_schedule(self, schedule_id: str) -> None:
        with _worded(f"The schedule {schedule_id} in {self.place}"):
            self._schedules.pause_schedule(name=self._name("schedules", schedule_id), timeout=_CALL_SECONDS)

    def resume_schedule(self, schedule_id: str, *, catch_up: bool) -> None:
        request = {"name": self._name("schedules", schedule_id), "catch_up": catch_up}
        with _worded(f"The schedule {schedule_id} in {self.place}"):
            self._schedules.resume_schedule(request=request, timeout=_CALL_SECONDS)

    def delete_schedule(self, schedule_id: str) -> None:
        with _worded(f"The schedule {schedule_id} in {self.place}"):
            operation = self._schedules.delete_schedule(
                name=self._name("schedules", schedule_id), timeout=_CALL_SECONDS
            )
            operation.result(timeout=_CALL_SECONDS)

    def _name(self, kind: str, resource_id: str) -> str:
        return f"{self.place}/{kind}/{resource_id}"

    def _job(self, request: RunRequest) -> Any:
        from google.protobuf import json_format

        described = {
            "displayName": request.name,
            "pipelineSpec": yaml.safe_load(request.pipeline_path.read_text(encoding="utf-8")),
            "runtimeConfig": {
                "gcsOutputDirectory": request.pipeline_root,
                "parameterValues": dict(request.parameters),
            },
            "labels": {
                **{id_part(key): id_part(value)[:63] for key, value in request.labels.items()},
                REQUEST_LABEL: request.digest,
            },
            "serviceAccount": request.service_account,
            "network": request.network,
        }
        job = self._types.PipelineJob()
        json_format.ParseDict(described, self._types.PipelineJob.pb(job))
        return job

    def _page(self, kind: str, resource_id: str) -> str:
        if self._endpoint.startswith("http://"):
            # Whatever answers there is not shown by Google's console; its own description is what there is to see.
            noun = {"runs": "pipelineJobs", "schedules": "schedules"}[kind]
            return f"{self._endpoint}/v1/{self._name(noun, resource_id)}"
        return _CONSOLE.format(location=self._location, kind=kind, id=resource_id, project=self._project)

    def _run(self, job: Mapping[str, Any]) -> RunStatus:
        run_id = job["name"].rpartition("/")[2]
        details = job.get("jobDetail", {}).get("taskDetails", ())
        groups = {task.get("parentTaskId") for task in details}
        return RunStatus(
            id=run_id,
            display_name=job.get("displayName", ""),
            state=_STATES.get(job.get("state", ""), RUNNING),
            created=job.get("createTime", ""),
            started=job.get("startTime", ""),
            ended=job.get("endTime", ""),
            error=job.get("error", {}).get("message", ""),
            page=self._page("runs", run_id),
            schedule=job.get("scheduleName", "").rpartition("/")[2],
            service_account=job.get("serviceAccount", ""),
            parameters=job.get("runtimeConfig", {}).get("parameterValues", {}),
            tasks=in_order(_task(task) for task in details if task.get("taskId") not in groups),
        )

    def _schedule(self, schedule: Mapping[str, Any]) -> ScheduleStatus:
        schedule_id = schedule["name"].rpartition("/")[2]
        wanted = schedule.get("createPipelineJobRequest", {})
        job = wanted.get("pipelineJob", {})
        fields, zone = _read_cron(schedule.get("cron", ""))
        runtime = job.get("runtimeConfig", {})
        return ScheduleStatus(
            id=schedule_id,
            name=schedule.get("displayName", ""),
            state=schedule.get("state", "").lower(),
            cron=fields,
            time_zone=zone,
            location=wanted.get("parent", "").rpartition("/")[2],
            service_account=job.get("serviceAccount", ""),
            parameters=runtime.get("parameterValues", {}),
            network=job.get("network", ""),
            pipeline_root=runtime.get("gcsOutputDirectory", ""),
            most_at_once=int(schedule.get("maxConcurrentRunCount", 0)),
            end=schedule.get("endTime", ""),
            pipeline=digest_of(job.get("pipelineSpec", {})),
            next_run=schedule.get("nextRunTime", ""),
            last_run=schedule.get("lastScheduledRunResponse", {}).get("runResponse", ""),
            page=self._page("schedules", schedule_id),
        )


def _credentials(endpoint: str) -> tuple[Any, str]:
    """Return credentials and their project; a token is never sent where anybody could read it."""
    import google.auth
    from google.auth import credentials, exceptions

    if endpoint.startswith("http://"):
        return credentials.AnonymousCredentials(), ""
    try:
        found, project = google.auth.default(scopes=[_SCOPE])
    except exceptions.DefaultCredentialsError as error:
        raise LaunchError(
            "There are no Google credentials on this machine.",
            next_step="Run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS.",
        ) from error
    return found, project or ""


@contextlib.contextmanager
def _worded(subject: str) -> Iterator[None]:
    """Turn the client's exceptions into ours."""
    from google.api_core import exceptions
    from google.auth import exceptions as auth_exceptions

    try:
        yield
    except exceptions.Conflict as error:
        raise AlreadyThereError(f"{subject} exists already.", next_step="Choose another name.") from error
    except (exceptions.Forbidden, exceptions.Unauthorized) as error:
        raise LaunchError(
            f"{subject}: Vertex AI refuses you: {error.message}",
            next_step="Grant roles/aiplatform.user, and roles/iam.serviceAccountUser on the service account.",
        ) from error
    except (exceptions.ServerError, exceptions.TooManyRequests, requests.RequestException) as error:
        raise ServiceUnreachableError(
            f"{subject}: Vertex AI does not answer: {error}", next_step="Check the network, then try again."
        ) from error
    except auth_exceptions.GoogleAuthError as error:
        raise LaunchError(
            f"{subject}: the Google credentials cannot be used: {error}",
            next_step="Run `gcloud auth application-default login` again.",
        ) from error
    except exceptions.NotFound as error:
        raise LaunchError(
            f"{subject} does not exist: {error.message}", next_step="Check launch.project, launch.location and the id."
        ) from error
    except exceptions.GoogleAPICallError as error:
        raise LaunchError(
            f"{subject}: Vertex AI refuses: {error.message}", next_step="Correct what it names, then try again."
        ) from error


def _as_json(message: Any) -> dict[str, Any]:
    from google.protobuf import json_format

    described: dict[str, Any] = json_format.MessageToDict(type(message).pb(message))
    return described


def _task(task: Mapping[str, Any]) -> TaskStatus:
    return TaskStatus(
        name=task.get("taskName", ""),
        state=task.get("state", "").lower(),
        started=task.get("startTime", ""),
        ended=task.get("endTime", ""),
    )


def _read_cron(expression: str) -> tuple[str, str]:
    """Return the fields and the zone of an expression; one that cannot be read comes back as it is."""
    try:
        cron = Cron.parse(expression)
    except LaunchError:
        return expression, ""
    return cron.fields, cron.zone
