"""Vertex AI's pipeline jobs and schedules, as its REST API describes them (aiplatform.googleapis.com, v1)."""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from aiohttp import web

from streamway.cron import Cron
from streamway.errors import LaunchError
from streamway.sandbox.clock import Clock
from streamway.sandbox.processes import read_json, write_json
from streamway.sandbox.vertex_runs import Run, RunQueue
from streamway.sandbox.vertex_schedules import COMPLETED, PAUSED, Scheduler, Timetable
from streamway.sandbox.vertex_store import (
    Resource,
    camel,
    new_number,
    page,
    read_object,
    read_time,
    refusal,
    select,
    whole_numbers,
)
from streamway.sandbox.vertex_tasks import Task

SURFACE = "vertex"
_JOB_ID = re.compile(r"[a-z][-a-z0-9]{0,127}")
_LABEL = re.compile(r"[a-z0-9_-]{0,63}")
_PLACE = "/v1/projects/{project}/locations/{location}"
_FIELDS_OF_A_JOB = frozenset(
    (
        *("name", "displayName", "pipelineSpec", "labels", "runtimeConfig", "encryptionSpec", "serviceAccount"),
        *("network", "reservedIpRanges", "templateUri", "preflightValidations", "pscInterfaceConfig"),
    )
)
_FIELDS_OF_A_SCHEDULE = frozenset(
    (
        *("name", "displayName", "cron", "startTime", "endTime", "maxRunCount", "maxConcurrentRunCount"),
        *("maxConcurrentActiveRunCount", "allowQueueing", "createPipelineJobRequest"),
    )
)
_TASK_ERROR = "The replica workerpool0-0 exited with a non-zero status of 1. To find out more, read the task's log."


class VertexSurface:
    """Handlers of pipelineJobs and schedules.

    Args:
        queue: Runs the jobs.
        scheduler: Fires the schedules.
        clock: What time it is.
    """

    def __init__(self, queue: RunQueue, scheduler: Scheduler, clock: Clock) -> None:
        self._queue = queue
        self._scheduler = scheduler
        self._clock = clock

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of the API."""
        jobs, schedules = f"{_PLACE}/pipelineJobs", f"{_PLACE}/schedules"
        job, schedule = f"{jobs}/{{id:[^/:]+}}", f"{schedules}/{{id:[^/:]+}}"
        return [
            web.post(jobs, self.create_job),
            web.get(jobs, self.list_jobs),
            web.get(job, self.get_job),
            web.delete(job, self.delete_job),
            web.post(f"{job}:cancel", self.cancel_job),
            web.post(schedules, self.create_schedule),
            web.get(schedules, self.list_schedules),
            web.get(schedule, self.get_schedule),
            web.patch(schedule, self.update_schedule),
            web.delete(schedule, self.delete_schedule),
            web.post(f"{schedule}:pause", self.pause_schedule),
            web.post(f"{schedule}:resume", self.resume_schedule),
        ]

    # Jobs

    async def create_job(self, request: web.Request) -> web.Response:
        body = await read_object(request)
        job_id = request.query.get("pipelineJobId", "")
        if not _JOB_ID.fullmatch(job_id):
            raise refusal(400, f"The pipeline job ID {job_id!r} must match {_JOB_ID.pattern}.")
        return web.json_response(self._create(_parent(request), job_id, body))

    async def get_job(self, request: web.Request) -> web.Response:
        return web.json_response(self._describe(self._run(request)))

    async def list_jobs(self, request: web.Request) -> web.Response:
        prefix = f"{_parent(request)}/pipelineJobs/"
        described = [self._describe(run) for run in self._queue.runs.values() if self._is_ours(run)]
        found = select([job for job in described if job["name"].startswith(prefix)], request.query.get("filter", ""))
        result = page(request, "pipelineJobs", found)
        if request.query.get("readMask"):
            result["pipelineJobs"] = [_simple_view(job) for job in result["pipelineJobs"]]
        return web.json_response(result)

    async def cancel_job(self, request: web.Request) -> web.Response:
        self._queue.cancel(self._run(request).id)
        return web.json_response({})

    async def delete_job(self, request: web.Request) -> web.Response:
        run = self._run(request)
        if not run.is_over:
            raise refusal(412, f"The PipelineJob is in state {run.state} and cannot be deleted; cancel it first.")
        await self._queue.remove(run.id)
        return _done(request)

    def _create(self, parent: str, job_id: str, body: Resource, *, schedule: str = "") -> Resource:
        name = f"{parent}/pipelineJobs/{job_id}"
        run_id = name.removeprefix("projects/").replace("/", ".")
        if run_id in self._queue.runs:
            raise refusal(409, f"Resource '{name}' already exists.")
        _check_job(body)
        runtime = body.get("runtimeConfig", {})
        run = self._queue.submit(
            run_id,
            name=job_id,
            spec=body["pipelineSpec"],
            parameters=_with_defaults(body["pipelineSpec"], runtime.get("parameterValues", {})),
            output_uri=runtime.get("gcsOutputDirectory", ""),
            schedule=schedule,
        )
        kept = {**body, "name": name, **({"scheduleName": f"{parent}/schedules/{schedule}"} if schedule else {})}
        write_json(self._queue.folder(run.id) / "resource.json", {"surface": SURFACE, "resource": kept})
        return self._describe(run)

    def _is_ours(self, run: Run) -> bool:
        return (read_json(self._queue.folder(run.id) / "resource.json") or {}).get("surface") == SURFACE

    def _run(self, request: web.Request) -> Run:
        name = f"{_parent(request)}/pipelineJobs/{request.match_info['id']}"
        run = self._queue.runs.get(name.removeprefix("projects/").replace("/", "."))
        if run is None:
            raise refusal(404, f"The PipelineJob does not exist: {name}")
        return run

    def _describe(self, run: Run) -> Resource:
        kept = read_json(self._queue.folder(run.id) / "resource.json") or {"resource": {}}
        described = {
            **kept["resource"],
            "state": f"PIPELINE_STATE_{run.state}",
            "createTime": run.created,
            "updateTime": run.ended or run.started or run.created,
            "jobDetail": {"taskDetails": [_task(task) for task in run.tasks]},
        }
        if run.started:
            described["startTime"] = run.started
        if run.ended:
            described["endTime"] = run.ended
        if run.error:
            described["error"] = {"code": 9, "message": f"{run.error}; Job ({described.get('name')}) is failed."}
        return described

    # Schedules

    async def create_schedule(self, request: web.Request) -> web.Response:
        body = await read_object(request)
        _check_schedule(body)
        schedule_id = new_number()
        body["name"] = f"{_parent(request)}/schedules/{schedule_id}"
        body["createTime"] = body["updateTime"] = self._clock.stamp()
        self._scheduler.add(schedule_id, _timetable(body), SURFACE, body)
        return web.json_response(self._describe_schedule(schedule_id))

    async def get_schedule(self, request: web.Request) -> web.Response:
        return web.json_response(self._describe_schedule(self._schedule_id(request)))

    async def list_schedules(self, request: web.Request) -> web.Response:
        prefix = f"{_parent(request)}/schedules/"
        ours = [name for name, entry in self._scheduler.shelf.entries.items() if entry["surface"] == SURFACE]
        described = [self._describe_schedule(name) for name in ours]
        found = [schedule for schedule in described if schedule["name"].startswith(prefix)]
        return web.json_response(page(request, "schedules", select(found, request.query.get("filter", ""))))

    async def update_schedule(self, request: web.Request) -> web.Response:
        schedule_id = self._schedule_id(request)
        body = await read_object(request)
        entry = self._scheduler.shelf.entries[schedule_id]
        changed = dict(entry["resource"])
        for path in request.query.get("updateMask", "").split(","):
            changed[camel(path)] = body.get(camel(path))
        _check_schedule(changed)
        before, timetable = self._scheduler.timetable(schedule_id), _timetable(changed)
        timetable.state, timetable.runs, timetable.last = before.state, before.runs, before.last
        if timetable.state != PAUSED:
            timetable.set_next(self._clock.now())
        timetable.settle()
        changed["updateTime"] = self._clock.stamp()
        self._scheduler.save(schedule_id, timetable, {"resource": changed})
        return web.json_response(self._describe_schedule(schedule_id))

    async def delete_schedule(self, request: web.Request) -> web.Response:
        self._scheduler.shelf.drop(self._schedule_id(request))
        return _done(request)

    async def pause_schedule(self, request: web.Request) -> web.Response:
        schedule_id = self._schedule_id(request)
        if self._scheduler.timetable(schedule_id).state == COMPLETED:
            raise refusal(412, "The Schedule is completed and cannot be paused.")
        self._scheduler.pause(schedule_id)
        return web.json_response({})

    async def resume_schedule(self, request: web.Request) -> web.Response:
        schedule_id = self._schedule_id(request)
        if self._scheduler.timetable(schedule_id).state != PAUSED:
            raise refusal(412, "The Schedule is not paused.")
        body = await read_object(request)
        self._scheduler.resume(schedule_id, catch_up=bool(body.get("catchUp")))
        return web.json_response({})

    def fire(self, schedule_id: str, entry: Resource, due: datetime) -> None:
        """Create the job of a schedule for a time that has come."""
        wanted = entry["resource"]["createPipelineJobRequest"]
        job = wanted["pipelineJob"]
        stem = job["pipelineSpec"]["pipelineInfo"]["name"]
        job_id = wanted.get("pipelineJobId") or f"{stem}-{due:%Y%m%d%H%M%S}-{schedule_id[-6:]}"
        body = {"displayName": entry["resource"]["displayName"], **job}
        self._create(wanted["parent"], job_id, body, schedule=schedule_id)

    def _schedule_id(self, request: web.Request) -> str:
        name = f"{_parent(request)}/schedules/{request.match_info['id']}"
        entry = self._scheduler.shelf.entries.get(request.match_info["id"])
        if entry is None or entry["resource"].get("name") != name:
            raise refusal(404, f"The Schedule does not exist: {name}")
        return request.match_info["id"]

    def _describe_schedule(self, schedule_id: str) -> Resource:
        entry, timetable = self._scheduler.shelf.entries[schedule_id], self._scheduler.timetable(schedule_id)
        described = {**entry["resource"], "state": timetable.state, "startedRunCount": str(timetable.runs)}
        described.setdefault("startTime", described["createTime"])
        more = {
            "nextRunTime": timetable.next,
            "lastPauseTime": entry.get("paused"),
            "lastResumeTime": entry.get("resumed"),
            "lastScheduledRunResponse": timetable.last,
        }
        return described | {key: value for key, value in more.items() if value}


def _parent(request: web.Request) -> str:
    info = request.match_info
    return f"projects/{info['project']}/locations/{info['location']}"


def _done(request: web.Request) -> web.Response:
    """Answer with a long-running operation that is over already."""
    return web.json_response(
        {
            "name": f"{_parent(request)}/operations/{new_number()}",
            "done": True,
            "metadata": {"@type": "type.googleapis.com/google.cloud.aiplatform.v1.DeleteOperationMetadata"},
            "response": {"@type": "type.googleapis.com/google.protobuf.Empty"},
        }
    )


def _check_job(body: Resource) -> None:
    unknown = set(body) - _FIELDS_OF_A_JOB
    if unknown:
        raise refusal(400, f"Invalid JSON payload received. Unknown name \"{min(unknown)}\" at 'pipeline_job'.")
    spec = body.get("pipelineSpec")
    if not isinstance(spec, dict) or "root" not in spec or "pipelineInfo" not in spec:
        raise refusal(400, "The pipeline_spec is missing or is not a compiled pipeline.")
    root = body.get("runtimeConfig", {}).get("gcsOutputDirectory", "")
    if not root.startswith("gs://"):
        raise refusal(400, f"The gcs_output_directory {root!r} must be a Cloud Storage path.")
    for key, value in body.get("labels", {}).items():
        if not key or not _LABEL.fullmatch(key) or not _LABEL.fullmatch(value):
            raise refusal(400, f"The label {key!r}: {value!r} is not valid.")
    _check_parameters(spec, body.get("runtimeConfig", {}).get("parameterValues", {}))


_KINDS: Mapping[str, tuple[type, ...]] = {
    "STRING": (str,),
    "NUMBER_INTEGER": (int, float),
    "NUMBER_DOUBLE": (int, float),
    "BOOLEAN": (bool,),
    "LIST": (list,),
    "STRUCT": (dict,),
}


def _check_parameters(spec: Resource, given: Mapping[str, Any]) -> None:
    known = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    for name, value in given.items():
        if name not in known:
            raise refusal(400, f"Unknown input parameter: {name}. It is not declared by the pipeline.")
        kind = known[name].get("parameterType", "")
        right = isinstance(value, _KINDS.get(kind, (object,)))
        whole = kind != "NUMBER_INTEGER" or (right and float(value).is_integer())
        if not right or not whole or (isinstance(value, bool) and kind != "BOOLEAN"):
            raise refusal(400, f"The value of input parameter {name} is not of type {kind}: {value!r}")
    for name, definition in known.items():
        if name not in given and "defaultValue" not in definition and not definition.get("isOptional"):
            raise refusal(400, f"The input parameter {name} is required, and has no value.")


def _with_defaults(spec: Resource, given: Mapping[str, Any]) -> Resource:
    known = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    defaults = {name: entry["defaultValue"] for name, entry in known.items() if "defaultValue" in entry}
    return whole_numbers({**defaults, **given}, known)


def _check_schedule(body: Resource) -> None:
    wanted = body.get("createPipelineJobRequest") or {}
    for key, value in (("display_name", body.get("displayName")), ("cron", body.get("cron"))):
        if not value:
            raise refusal(400, f"The schedule's {key} is missing.")
    if int(body.get("maxConcurrentRunCount") or 0) < 1:
        raise refusal(400, "The schedule's max_concurrent_run_count must be at least 1.")
    if "parent" not in wanted or "pipelineJob" not in wanted:
        raise refusal(400, "The schedule's create_pipeline_job_request must have a parent and a pipeline_job.")
    unknown = set(body) - _FIELDS_OF_A_SCHEDULE - {"createTime", "updateTime", "state", "startedRunCount"}
    if unknown and "createTime" not in body:
        raise refusal(400, f"Invalid JSON payload received. Unknown name \"{min(unknown)}\" at 'schedule'.")
    try:
        Cron.parse(body["cron"])
    except LaunchError as error:
        raise refusal(400, error.problem) from error
    _check_job({"displayName": body["displayName"], **wanted["pipelineJob"]})


def _timetable(body: Resource) -> Timetable:
    for key in ("startTime", "endTime"):
        if body.get(key):
            read_time(body[key])
    return Timetable(
        cron=body["cron"],
        start=body.get("startTime") or "",
        end=body.get("endTime") or "",
        most_runs=int(body.get("maxRunCount") or 0),
        most_at_once=int(body["maxConcurrentRunCount"]),
        queueing=bool(body.get("allowQueueing")),
    )


def _task(task: Task) -> Resource:
    described: Resource = {
        "taskId": str(task.id),
        "taskName": task.name,
        "createTime": task.created,
        "state": task.state,
        **({"parentTaskId": str(task.parent)} if task.parent else {}),
        **({"startTime": task.started} if task.started else {}),
        **({"endTime": task.ended} if task.ended else {}),
    }
    if task.outputs:
        described["outputs"] = {name: {"artifacts": [_artifact(found)]} for name, found in task.outputs.items()}
    if task.state == "FAILED":
        described["error"] = {"code": 9, "message": _TASK_ERROR}
    return described


def _artifact(found: Mapping[str, Any]) -> Resource:
    return {
        "name": found["name"],
        "displayName": found["name"],
        "uri": found["uri"],
        "schemaTitle": found["type"],
        "metadata": found["metadata"],
    }


def _simple_view(job: Resource) -> Resource:
    kept = ("name", "state", "displayName", "createTime", "startTime", "endTime", "updateTime", "labels", "templateUri")
    info = {"pipelineInfo": job["pipelineSpec"]["pipelineInfo"]}
    return {key: job[key] for key in kept if key in job} | {"pipelineSpec": info}
