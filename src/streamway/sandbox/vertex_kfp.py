"""The Kubeflow Pipelines API (v2beta1), as far as kfp.Client asks it about runs, recurring runs and pipelines."""

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web

from streamway.cron import Cron
from streamway.errors import LaunchError
from streamway.sandbox.clock import Clock
from streamway.sandbox.processes import read_json, write_json
from streamway.sandbox.vertex_runs import Run, RunQueue
from streamway.sandbox.vertex_schedules import PAUSED, Scheduler, Timetable
from streamway.sandbox.vertex_store import Resource, Shelf, new_id, read_object, refusal, whole_numbers
from streamway.sandbox.vertex_tasks import Task

SURFACE = "kubeflow"
_API = "/apis/v2beta1"
# kfp_server_api.V2beta1RuntimeState has neither queued runs nor Vertex AI's spelling.
_STATES = {"QUEUED": "PENDING", "CANCELLING": "CANCELING", "CANCELLED": "CANCELED", "NOT_TRIGGERED": "SKIPPED"}
_DEFAULT_PAGE = 10


class KubeflowSurface:
    """Handlers of the API.

    Args:
        queue: Runs the runs.
        scheduler: Fires the recurring runs.
        clock: What time it is.
        folder: Where experiments and pipelines are kept.
    """

    def __init__(self, queue: RunQueue, scheduler: Scheduler, clock: Clock, folder: Path) -> None:
        self._queue = queue
        self._scheduler = scheduler
        self._clock = clock
        self._experiments = Shelf(folder / "experiments")
        self._pipelines = Shelf(folder / "pipelines")
        self._versions = Shelf(folder / "versions")

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of the API."""
        run, recurring = f"{_API}/runs/{{id:[^/:]+}}", f"{_API}/recurringruns/{{id:[^/:]+}}"
        pipeline, experiment = f"{_API}/pipelines/{{id:[^/:]+}}", f"{_API}/experiments/{{id:[^/:]+}}"
        return [
            web.get(f"{_API}/healthz", self.health),
            web.post(f"{_API}/experiments", self.create_experiment),
            web.get(f"{_API}/experiments", self.list_experiments),
            web.get(experiment, self.get_experiment),
            web.delete(experiment, self.delete_experiment),
            web.post(f"{_API}/pipelines/upload", self.upload_pipeline),
            web.post(f"{_API}/pipelines/upload_version", self.upload_version),
            web.get(f"{_API}/pipelines", self.list_pipelines),
            web.get(pipeline, self.get_pipeline),
            web.delete(pipeline, self.delete_pipeline),
            web.get(f"{pipeline}/versions", self.list_versions),
            web.get(f"{pipeline}/versions/{{version}}", self.get_version),
            web.post(f"{_API}/runs", self.create_run),
            web.get(f"{_API}/runs", self.list_runs),
            web.get(run, self.get_run),
            web.delete(run, self.delete_run),
            web.post(f"{run}:terminate", self.terminate_run),
            web.post(f"{_API}/recurringruns", self.create_recurring_run),
            web.get(f"{_API}/recurringruns", self.list_recurring_runs),
            web.get(recurring, self.get_recurring_run),
            web.delete(recurring, self.delete_recurring_run),
            web.post(f"{recurring}:enable", self.enable_recurring_run),
            web.post(f"{recurring}:disable", self.disable_recurring_run),
        ]

    async def health(self, _: web.Request) -> web.Response:
        return web.json_response({"multi_user": False})

    # Experiments

    async def create_experiment(self, request: web.Request) -> web.Response:
        body = await read_object(request)
        if any(known["display_name"] == body.get("display_name") for known in self._experiments.entries.values()):
            raise refusal(409, f"Experiment with name {body.get('display_name')} already exists.")
        entry = {**body, "experiment_id": new_id(), "created_at": self._clock.stamp(), "storage_state": "AVAILABLE"}
        return web.json_response(self._experiments.put(entry["experiment_id"], entry))

    async def list_experiments(self, request: web.Request) -> web.Response:
        return _page(request, "experiments", list(self._experiments.entries.values()))

    async def get_experiment(self, request: web.Request) -> web.Response:
        return web.json_response(_find(request, "Experiment", self._experiments))

    async def delete_experiment(self, request: web.Request) -> web.Response:
        self._experiments.drop(_find(request, "Experiment", self._experiments)["experiment_id"])
        return web.json_response({})

    # Pipelines

    async def upload_pipeline(self, request: web.Request) -> web.Response:
        name = request.query.get("name", "")
        if any(known["display_name"] == name for known in self._pipelines.entries.values()):
            raise refusal(409, f"Pipeline with name {name} already exists.")
        spec = await _uploaded_spec(request)
        entry = {
            "pipeline_id": new_id(),
            "display_name": name,
            "name": name,
            "description": request.query.get("description", ""),
            "created_at": self._clock.stamp(),
        }
        self._pipelines.put(entry["pipeline_id"], entry)
        self._add_version(entry["pipeline_id"], name, spec)
        return web.json_response(entry)

    async def upload_version(self, request: web.Request) -> web.Response:
        pipeline_id = request.query.get("pipelineid", "")
        if pipeline_id not in self._pipelines.entries:
            raise refusal(404, f"Pipeline {pipeline_id} not found.")
        spec = await _uploaded_spec(request)
        return web.json_response(self._add_version(pipeline_id, request.query.get("name", ""), spec))

    def _add_version(self, pipeline_id: str, name: str, spec: Resource) -> Resource:
        versions = [known for known in self._versions.entries.values() if known["pipeline_id"] == pipeline_id]
        if any(known["display_name"] == name for known in versions):
            raise refusal(409, f"Pipeline version with name {name} already exists.")
        entry: Resource = {
            "pipeline_id": pipeline_id,
            "pipeline_version_id": new_id(),
            "display_name": name,
            "name": name,
            "created_at": self._clock.stamp(),
            "pipeline_spec": spec,
        }
        return self._versions.put(entry["pipeline_version_id"], entry)

    async def list_pipelines(self, request: web.Request) -> web.Response:
        return _page(request, "pipelines", list(self._pipelines.entries.values()))

    async def get_pipeline(self, request: web.Request) -> web.Response:
        return web.json_response(_find(request, "Pipeline", self._pipelines))

    async def delete_pipeline(self, request: web.Request) -> web.Response:
        pipeline_id = _find(request, "Pipeline", self._pipelines)["pipeline_id"]
        for version_id, version in list(self._versions.entries.items()):
            if version["pipeline_id"] == pipeline_id:
                self._versions.drop(version_id)
        self._pipelines.drop(pipeline_id)
        return web.json_response({})

    async def list_versions(self, request: web.Request) -> web.Response:
        pipeline_id = _find(request, "Pipeline", self._pipelines)["pipeline_id"]
        found = [known for known in self._versions.entries.values() if known["pipeline_id"] == pipeline_id]
        return _page(request, "pipeline_versions", found)

    async def get_version(self, request: web.Request) -> web.Response:
        found = self._versions.entries.get(request.match_info["version"])
        if found is None or found["pipeline_id"] != request.match_info["id"]:
            raise refusal(404, f"Pipeline version {request.match_info['version']} not found.")
        return web.json_response(found)

    # Runs

    async def create_run(self, request: web.Request) -> web.Response:
        return web.json_response(self._create(await read_object(request)))

    async def list_runs(self, request: web.Request) -> web.Response:
        described = [self._describe(run) for run in self._queue.runs.values() if self._kept(run)]
        for run in described:
            run.pop("pipeline_spec", None)
        return _page(request, "runs", described)

    async def get_run(self, request: web.Request) -> web.Response:
        return web.json_response(self._describe(self._run(request)))

    async def delete_run(self, request: web.Request) -> web.Response:
        run = self._run(request)
        if not run.is_over:
            raise refusal(412, f"Run {run.id} is {run.state}; terminate it first.")
        await self._queue.remove(run.id)
        return web.json_response({})

    async def terminate_run(self, request: web.Request) -> web.Response:
        self._queue.cancel(self._run(request).id)
        return web.json_response({})

    def _create(self, body: Resource, *, schedule: str = "") -> Resource:
        spec = self._spec_of(body)
        runtime = body.get("runtime_config") or {}
        known = spec["root"].get("inputDefinitions", {}).get("parameters", {})
        given = runtime.get("parameters") or {}
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise refusal(400, f"Parameter {unknown[0]} is not an input of the pipeline.")
        defaults = {name: entry["defaultValue"] for name, entry in known.items() if "defaultValue" in entry}
        run_id = new_id()
        run = self._queue.submit(
            run_id,
            # Kubeflow names the workflow after the pipeline, with a random end.
            name=f"{spec['pipelineInfo']['name']}-{run_id[:5]}",
            spec=spec,
            parameters=whole_numbers({**defaults, **given}, known),
            output_uri=runtime.get("pipeline_root") or "",
            schedule=schedule,
        )
        kept = {**body, "pipeline_spec": spec, **({"recurring_run_id": schedule} if schedule else {})}
        write_json(self._queue.folder(run_id) / "resource.json", {"surface": SURFACE, "resource": kept})
        return self._describe(run)

    def _spec_of(self, body: Resource) -> Resource:
        spec = body.get("pipeline_spec") or {}
        spec = spec.get("pipeline_spec", spec)
        reference = body.get("pipeline_version_reference") or {}
        if not spec:
            version = self._versions.entries.get(reference.get("pipeline_version_id", ""))
            if version is None:
                raise refusal(404, "The run names neither a pipeline spec nor a known pipeline version.")
            spec = version["pipeline_spec"]
        if "root" not in spec or "pipelineInfo" not in spec:
            raise refusal(400, "The pipeline_spec is not a compiled pipeline.")
        return dict(spec)

    def _kept(self, run: Run) -> Resource | None:
        kept = read_json(self._queue.folder(run.id) / "resource.json")
        return kept["resource"] if kept and kept["surface"] == SURFACE else None

    def _run(self, request: web.Request) -> Run:
        run = self._queue.runs.get(request.match_info["id"])
        if run is None or self._kept(run) is None:
            raise refusal(404, f"Run {request.match_info['id']} not found.")
        return run

    def _describe(self, run: Run) -> Resource:
        described = {
            **(self._kept(run) or {}),
            "run_id": run.id,
            "state": _state(run.state),
            "storage_state": "AVAILABLE",
            "created_at": run.created,
            "scheduled_at": run.created,
            "run_details": {"task_details": [_task(run.id, task) for task in run.tasks]},
        }
        if run.ended:
            described["finished_at"] = run.ended
        if run.error:
            described["error"] = {"code": 13, "message": run.error}
        return described

    # Recurring runs

    async def create_recurring_run(self, request: web.Request) -> web.Response:
        body = await read_object(request)
        body["pipeline_spec"] = self._spec_of(body)
        recurring_id = new_id()
        body |= {"recurring_run_id": recurring_id, "created_at": self._clock.stamp(), "updated_at": self._clock.stamp()}
        self._scheduler.add(recurring_id, _timetable(body), SURFACE, body)
        if body.get("mode") == "DISABLE":
            self._scheduler.pause(recurring_id)
        return web.json_response(self._describe_recurring(recurring_id))

    async def list_recurring_runs(self, request: web.Request) -> web.Response:
        ours = [name for name, entry in self._scheduler.shelf.entries.items() if entry["surface"] == SURFACE]
        return _page(request, "recurringRuns", [self._describe_recurring(name) for name in ours])

    async def get_recurring_run(self, request: web.Request) -> web.Response:
        return web.json_response(self._describe_recurring(self._recurring_id(request)))

    async def delete_recurring_run(self, request: web.Request) -> web.Response:
        self._scheduler.shelf.drop(self._recurring_id(request))
        return web.json_response({})

    async def enable_recurring_run(self, request: web.Request) -> web.Response:
        recurring_id = self._recurring_id(request)
        no_catchup = bool(self._scheduler.shelf.entries[recurring_id]["resource"].get("no_catchup"))
        self._scheduler.resume(recurring_id, catch_up=not no_catchup)
        return web.json_response({})

    async def disable_recurring_run(self, request: web.Request) -> web.Response:
        self._scheduler.pause(self._recurring_id(request))
        return web.json_response({})

    def fire(self, recurring_id: str, entry: Resource, due: datetime) -> None:
        """Create the run of a recurring run for a time that has come."""
        kept = ("experiment_id", "pipeline_spec", "runtime_config", "service_account", "description")
        body = {key: entry["resource"][key] for key in kept if entry["resource"].get(key) is not None}
        body["display_name"] = f"{entry['resource']['display_name']}-{due:%Y%m%d%H%M%S}"
        self._create(body, schedule=recurring_id)

    def _recurring_id(self, request: web.Request) -> str:
        recurring_id = request.match_info["id"]
        entry = self._scheduler.shelf.entries.get(recurring_id)
        if entry is None or entry["surface"] != SURFACE:
            raise refusal(404, f"Recurring run {recurring_id} not found.")
        return recurring_id

    def _describe_recurring(self, recurring_id: str) -> Resource:
        paused = self._scheduler.timetable(recurring_id).state == PAUSED
        return {
            **self._scheduler.shelf.entries[recurring_id]["resource"],
            "mode": "DISABLE" if paused else "ENABLE",
            "status": "DISABLED" if paused else "ENABLED",
        }


def _timetable(body: Resource) -> Timetable:
    trigger = body.get("trigger") or {}
    times = trigger.get("cron_schedule") or trigger.get("periodic_schedule") or {}
    cron, period = times.get("cron", ""), int(times.get("interval_second") or 0)
    most = int(body.get("max_concurrency") or 0)
    if bool(cron) == bool(period) or not 1 <= most <= 10:
        raise refusal(400, "A recurring run has a cron schedule or a period, and a max_concurrency of 1 to 10.")
    try:
        if cron:
            Cron.parse(cron)
    except LaunchError as error:
        raise refusal(400, error.problem) from error
    start, end = times.get("start_time") or "", times.get("end_time") or ""
    return Timetable(cron=cron, period_seconds=period, start=start, end=end, most_at_once=most, queueing=True)


def _state(state: str) -> str:
    return _STATES.get(state, state)


def _task(run_id: str, task: Task) -> Resource:
    return {
        "run_id": run_id,
        "task_id": str(task.id),
        "display_name": task.name,
        "create_time": task.created,
        "state": _state(task.state),
        **({"parent_task_id": str(task.parent)} if task.parent else {}),
        **({"start_time": task.started} if task.started else {}),
        **({"end_time": task.ended} if task.ended else {}),
    }


def _find(request: web.Request, kind: str, shelf: Shelf) -> Resource:
    found = shelf.entries.get(request.match_info["id"])
    if found is None:
        raise refusal(404, f"{kind} {request.match_info['id']} not found.")
    return found


def _page(request: web.Request, key: str, entries: list[Resource]) -> web.Response:
    query = request.query
    keep = _predicates(query.get("filter") or "")
    entries = [entry for entry in entries if keep(entry)]
    experiment = query.get("experiment_id")
    if experiment:
        entries = [entry for entry in entries if entry.get("experiment_id") == experiment]
    order, _, direction = (query.get("sort_by") or "created_at").partition(" ")
    entries.sort(key=lambda entry: str(entry.get(order, "")), reverse=direction == "desc")
    start = int(query.get("page_token") or 0)
    end = start + int(query.get("page_size") or _DEFAULT_PAGE)
    token = {"next_page_token": str(end)} if end < len(entries) else {}
    found = {key: entries[start:end]} if entries[start:end] else {}
    return web.json_response({**found, "total_size": len(entries), **token})


def _predicates(text: str) -> Callable[[Mapping[str, Any]], bool]:
    """Read a filter (backend/api/v2beta1/filter.proto of kubeflow/pipelines): every predicate must hold."""
    try:
        predicates = json.loads(text)["predicates"] if text else []
    except (ValueError, KeyError, TypeError) as error:
        raise refusal(400, f"Invalid filter: {text}") from error

    def keep(entry: Mapping[str, Any]) -> bool:
        for predicate in predicates:
            found = str(entry.get(predicate.get("key"), ""))
            wanted = str(predicate.get("stringValue", predicate.get("string_value", "")))
            operation = str(predicate.get("operation"))
            if operation in ("EQUALS", "1") and found != wanted:
                return False
            if operation in ("NOT_EQUALS", "2") and found == wanted:
                return False
            if operation in ("IS_SUBSTRING", "9") and wanted not in found:
                return False
        return True

    return keep


async def _uploaded_spec(request: web.Request) -> Resource:
    form = await request.post()
    upload = form.get("uploadfile")
    if not isinstance(upload, web.FileField):
        raise refusal(400, "The pipeline's file is missing.")
    try:
        spec = next(iter(yaml.safe_load_all(upload.file.read())))
    except (yaml.YAMLError, StopIteration) as error:
        raise refusal(400, f"The pipeline's file is not YAML: {error}") from error
    if not isinstance(spec, dict) or "root" not in spec:
        raise refusal(400, "The file is not a compiled pipeline.")
    return spec
