"""A Kubeflow Pipelines API, by kfp's own client: the same verbs as on Vertex AI.

Kubeflow gives runs ids of its own and takes a name twice, so that two who submit the same thing at the same time find
each other afterwards: the run that was created first stays, and the other one is taken back.
"""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from streamway.errors import AlreadyThereError, LaunchError, ServiceUnreachableError
from streamway.launch.service import (
    CANCELLED,
    FAILED,
    QUEUED,
    RUNNING,
    SUCCEEDED,
    RunRequest,
    RunStatus,
    ScheduleRequest,
    ScheduleStatus,
    TaskStatus,
    digest_of,
    in_order,
)

logger = logging.getLogger("streamway.launch")

_EQUALS, _IS_SUBSTRING = "EQUALS", "IS_SUBSTRING"
_STATES = {
    "PENDING": QUEUED,
    "SUCCEEDED": SUCCEEDED,
    "SKIPPED": SUCCEEDED,
    "FAILED": FAILED,
    "CANCELED": CANCELLED,
}
_PAGE = 100


class KubeflowService:
    """Kubeflow Pipelines at one address.

    Args:
        url: Address of the API; a token, where one is needed, comes as kfp.Client documents it.
        experiment: Experiment that runs belong to; made if missing.

    Raises:
        LaunchError: nothing answers there.
    """

    def __init__(self, url: str, *, experiment: str) -> None:
        import kfp_server_api  # type: ignore[import-untyped]
        from kfp import Client

        self._url = url.rstrip("/")
        self._api = kfp_server_api
        with self._worded("The experiment"):
            self._client = Client(host=self._url)
            self._experiment = self._client.create_experiment(experiment).experiment_id

    @property
    def place(self) -> str:
        return self._url

    def create_run(self, request: RunRequest, run_id: str) -> RunStatus:
        with self._worded(f"The run {run_id}"):
            if self._named(run_id):
                raise AlreadyThereError(f"{self._url} has a run {run_id} already.", next_step="Choose another name.")
            created = self._client.run_pipeline(
                self._experiment,
                run_id,
                pipeline_package_path=str(request.pipeline_path),
                params=dict(request.parameters),
                pipeline_root=request.pipeline_root or None,
                service_account=request.service_account or None,
            )
            first = min(self._named(run_id), key=lambda run: (run.created_at, run.run_id))
            if first.run_id != created.run_id:
                self._client.terminate_run(created.run_id)
                raise AlreadyThereError(f"{self._url} has a run {run_id} already.", next_step="Choose another name.")
        return self._run(created)

    def find_run(self, run_id: str) -> RunStatus | None:
        with self._worded(f"The run {run_id}"):
            named = self._named(run_id)
            if named:
                run_id = min(named, key=lambda run: (run.created_at, run.run_id)).run_id
            try:
                return self._run(self._client.get_run(run_id))
            except self._api.ApiException as error:
                if error.status == 404:
                    return None
                raise

    def list_runs(self, *, limit: int, digest: str = "") -> tuple[RunStatus, ...]:
        predicate = _predicate(_IS_SUBSTRING, digest) if digest else None
        with self._worded("The runs"):
            found = self._all("runs", self._client.list_runs, limit, filter=predicate, experiment_id=self._experiment)
        return tuple(self._run(run) for run in found)

    def cancel_run(self, run_id: str) -> None:
        with self._worded(f"The run {run_id}"):
            for run in self._named(run_id)[:1]:
                run_id = run.run_id
            self._client.terminate_run(run_id)

    def create_schedule(self, request: ScheduleRequest) -> str:
        if request.cron.zone != "UTC":
            raise LaunchError(
                f"The schedule {request.name} has the time zone {request.cron.zone}, and Kubeflow has none: its "
                "expressions are in the zone of its controller, UTC unless its operator changed it.",
                next_step="Write the times in UTC, with --time-zone UTC.",
            )
        run = request.run
        with self._worded(f"The schedule {request.name}"):
            created = self._client.create_recurring_run(
                self._experiment,
                request.name,
                # The first of Kubeflow's six fields is the second.
                cron_expression=f"0 {request.cron.fields}",
                end_time=request.end or None,
                max_concurrency=request.most_at_once,
                no_catchup=True,
                params=dict(run.parameters),
                pipeline_package_path=str(run.pipeline_path),
                pipeline_root=run.pipeline_root or None,
                service_account=run.service_account or None,
            )
        return str(created.recurring_run_id)

    def list_schedules(self) -> tuple[ScheduleStatus, ...]:
        listing = self._client.list_recurring_runs
        with self._worded("The schedules"):
            found = self._all("recurring_runs", listing, 10 * _PAGE, experiment_id=self._experiment)
        return tuple(self._schedule(schedule) for schedule in found)

    def find_schedule(self, schedule_id: str) -> ScheduleStatus | None:
        with self._worded(f"The schedule {schedule_id}"):
            try:
                return self._schedule(self._client.get_recurring_run(schedule_id))
            except self._api.ApiException as error:
                if error.status == 404:
                    return None
                raise

    def pause_schedule(self, schedule_id: str) -> None:
        with self._worded(f"The schedule {schedule_id}"):
            self._client.disable_recurring_run(schedule_id)

    def resume_schedule(self, schedule_id: str, *, catch_up: bool) -> None:
        if catch_up:
            raise LaunchError(
                f"The schedule {schedule_id} cannot catch up: on Kubeflow that is settled when it is created, and "
                "Streamway creates schedules that do not.",
                next_step="Resume it without --catch-up, and submit what was missed.",
            )
        with self._worded(f"The schedule {schedule_id}"):
            self._client.enable_recurring_run(schedule_id)

    def delete_schedule(self, schedule_id: str) -> None:
        with self._worded(f"The schedule {schedule_id}"):
            self._client.delete_recurring_run(schedule_id)

    def publish(self, pipeline_path: str, name: str, version: str) -> str:
        """Upload a compiled pipeline as a version of its own; return the version's id.

        A version of that name that is there already is left as it is, if it is the same pipeline.

        Args:
            pipeline_path: The compiled file.
            name: The pipeline's name.
            version: The version's name.

        Raises:
            LaunchError: another pipeline has been published under this version.
        """
        content = digest_of(yaml.safe_load(Path(pipeline_path).read_text(encoding="utf-8")))
        with self._worded(f"The pipeline {name}"):
            pipeline_id = self._client.get_pipeline_id(name)
            if pipeline_id is None:
                pipeline_id = self._client.upload_pipeline(pipeline_path, name).pipeline_id
            listing = self._client.list_pipeline_versions
            for known in self._all("pipeline_versions", listing, 10 * _PAGE, pipeline_id=pipeline_id):
                if known.display_name != version:
                    continue
                if known.pipeline_spec and digest_of(known.pipeline_spec) != content:
                    raise LaunchError(
                        f"{self._url} has a version {version} of {name} already, and it is another pipeline, compiled "
                        "from other source or for another image. Kubeflow does not replace versions.",
                        next_step="Publish under another version with --tag, or without it under the time of day.",
                    )
                return str(known.pipeline_version_id)
            uploaded = self._client.upload_pipeline_version(pipeline_path, version, pipeline_id=pipeline_id)
        return str(uploaded.pipeline_version_id)

    def _named(self, name: str) -> list[Any]:
        listing = self._client.list_runs
        named = self._all("runs", listing, _PAGE, filter=_predicate(_EQUALS, name), experiment_id=self._experiment)
        return [run for run in named if run.state not in ("CANCELED", "CANCELING")]

    def _all(self, key: str, listing: Any, limit: int, **choices: Any) -> list[Any]:
        found: list[Any] = []
        token = ""
        while len(found) < limit:
            page = listing(page_token=token, page_size=_PAGE, sort_by="created_at desc", **choices)
            found += getattr(page, key) or ()
            token = page.next_page_token
            if not token:
                break
        return found[:limit]

    def _run(self, run: Any) -> RunStatus:
        details = (run.run_details.task_details if run.run_details else None) or ()
        groups = {task.parent_task_id for task in details}
        return RunStatus(
            id=run.run_id,
            display_name=run.display_name or "",
            state=_STATES.get(run.state or "PENDING", RUNNING),
            created=_time(run.created_at),
            started=_time(run.scheduled_at),
            ended=_time(run.finished_at),
            error=(run.error.message if run.error else "") or "",
            page=f"{self._url}/#/runs/details/{run.run_id}",
            schedule=run.recurring_run_id or "",
            service_account=run.service_account or "",
            parameters=(run.runtime_config.parameters if run.runtime_config else None) or {},
            tasks=in_order(
                TaskStatus(
                    name=task.display_name or "",
                    state=(task.state or "").lower(),
                    started=_time(task.start_time),
                    ended=_time(task.end_time),
                )
                for task in details
                if task.task_id not in groups
            ),
        )

    def _schedule(self, schedule: Any) -> ScheduleStatus:
        trigger = schedule.trigger.cron_schedule if schedule.trigger else None
        runtime = schedule.runtime_config
        return ScheduleStatus(
            id=schedule.recurring_run_id,
            name=schedule.display_name or "",
            state="active" if schedule.status == "ENABLED" else "paused",
            cron=((trigger.cron if trigger else "") or "").partition(" ")[2],
            time_zone="UTC",
            location="",
            service_account=schedule.service_account or "",
            parameters=(runtime.parameters if runtime else None) or {},
            network="",
            pipeline_root=(runtime.pipeline_root if runtime else "") or "",
            most_at_once=int(schedule.max_concurrency or 0),
            end=_time(trigger.end_time) if trigger else "",
            pipeline=digest_of(schedule.pipeline_spec or {}),
            page=f"{self._url}/#/recurringrun/details/{schedule.recurring_run_id}",
        )

    @contextlib.contextmanager
    def _worded(self, subject: str) -> Iterator[None]:
        """Turn the client's exceptions into ours, and keep what it prints out of our results."""
        import urllib3

        subject = f"{subject} at {self._url}"
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                yield
            except self._api.ApiException as error:
                if error.status is not None and error.status < 500 and error.status != 429:
                    raise LaunchError(
                        f"{subject}: Kubeflow refuses with {error.status}: {_words(error)}",
                        next_step="Correct what it names, then try again.",
                    ) from error
                raise ServiceUnreachableError(
                    f"{subject}: Kubeflow does not answer: {_words(error)}", next_step="Try again in a while."
                ) from error
            except (urllib3.exceptions.HTTPError, OSError) as error:
                raise ServiceUnreachableError(
                    f"{subject}: nothing answers there: {error}", next_step="Check the address after --kfp."
                ) from error


def _predicate(operation: str, value: str) -> str:
    predicates = [{"operation": operation, "key": "display_name", "stringValue": value}]
    return json.dumps({"predicates": predicates})


def _time(moment: Any) -> str:
    return moment.isoformat() if moment else ""


def _words(error: Any) -> str:
    """Return what an API exception says, without its headers."""
    try:
        body = json.loads(error.body)
        return str(body.get("message") or body["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return str(error.reason or error.body)
