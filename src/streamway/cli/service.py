"""The service that runs pipelines, as a configuration means it: what is asked of it, and what it answers."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamway import storage
from streamway.cli import output
from streamway.cli.configuration import point_at_sandbox
from streamway.errors import LaunchError, StreamwayError
from streamway.launch import compile_pipeline
from streamway.launch.kfp_api import KubeflowService
from streamway.launch.service import SUCCEEDED, PipelineService, RunRequest, RunStatus, submit, wait_for_run
from streamway.launch.vertex import VertexService
from streamway.report.journal import RunJournal
from streamway.report.silence import explain_silence
from streamway.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Following:
    """How far a command goes with a run.

    Args:
        dry_run: Whether it only shows what it would ask for.
        wait: Whether it follows the run until that is over.
        timeout_minutes: Its longest wait; the run goes on.
        as_json: Whether a program reads what it says.
    """

    dry_run: bool
    wait: bool
    timeout_minutes: float
    as_json: bool


@contextmanager
def started(
    settings: Settings, state_path: Path, pipeline: str, parameters: dict[str, Any], kfp_url: str
) -> Iterator[tuple[PipelineService, RunRequest]]:
    """Compile a pipeline, and give the service together with what to ask it for.

    Raises:
        LaunchError: there is no service, or nowhere to keep outputs.
    """
    service = connect(settings, state_path, kfp_url)
    with tempfile.TemporaryDirectory(prefix="streamway-") as folder:
        yield service, make_request(settings, pipeline, parameters, Path(folder), on_vertex=not kfp_url)


def submit_pipeline(
    settings: Settings,
    state_path: Path,
    pipeline: str,
    parameters: dict[str, Any],
    kfp_url: str,
    following: Following,
) -> int:
    """Start a pipeline on the service, or only show what would be asked for; return the exit code."""
    with started(settings, state_path, pipeline, parameters, kfp_url) as (service, request):
        if following.dry_run:
            show_request(service, request, as_json=following.as_json)
            return 0
        return _start(service, request, settings, following)


def make_request(
    settings: Settings, pipeline: str, parameters: dict[str, Any], folder: Path, *, on_vertex: bool
) -> RunRequest:
    """Compile a pipeline to a folder, and make the request for a run of it.

    Raises:
        LaunchError: Vertex AI needs a bucket for outputs, and there is none.
    """
    warn_about_image(settings)
    chosen = settings.launch
    root = chosen.pipeline_root or storage.join(settings.storage.release_root, ".pipelines")
    if on_vertex and not storage.is_gs(root):
        raise LaunchError(
            f"The outputs of runs would go to {root}, and Vertex AI can only write to a bucket.",
            next_step="Set launch.pipeline_root to gs://BUCKET/PREFIX.",
        )
    path = folder / f"{pipeline}.yaml"
    if not path.exists():
        compile_pipeline(pipeline, path, image=settings.pipeline.image)
    return RunRequest(
        pipeline_path=path,
        parameters=parameters,
        name=parameters["name"],
        service_account=chosen.service_account,
        network=chosen.network if on_vertex else "",
        pipeline_root=root if storage.is_gs(root) else "",
        labels=chosen.labels,
    )


def connect(settings: Settings, state_path: Path, kfp_url: str) -> PipelineService:
    """Return the service that a configuration means.

    Raises:
        LaunchError: it cannot be reached, or there are no credentials.
        SandboxError: the configuration means the sandbox, and that is not up.
    """
    point_at_sandbox(settings, state_path)
    if kfp_url:
        return KubeflowService(kfp_url, experiment=settings.launch.experiment)
    chosen = settings.launch
    return VertexService(project=chosen.project, location=chosen.location, endpoint=chosen.endpoint)


def _start(service: PipelineService, request: RunRequest, settings: Settings, following: Following) -> int:
    """Submit a request, follow it where asked to, and return the exit code."""
    run = submit(service, request)
    output.say(f"{run.id} {'was started already; joined it' if run.joined else 'is started'}: {run.page}")
    if not following.wait:
        output.give(run, as_json=following.as_json, lines=[run.id])
        return 0
    run = wait_for_run(service, run.id, timeout_seconds=60 * following.timeout_minutes, on_status=_Follower())
    error = {} if run.state == SUCCEEDED else _explain(run, settings, service.place)
    output.give({**vars(run), "step_error": error}, as_json=following.as_json, lines=run_lines(run))
    if run.state == SUCCEEDED:
        return 0
    output.show_error(str(error["problem"]), str(error["next_step"]))
    return int(error["exit_code"])


def show_request(service: PipelineService, request: RunRequest, *, as_json: bool) -> None:
    """Show what would be asked for."""
    shown = {
        "place": service.place,
        "run": request.stem,
        "pipeline": request.pipeline_path.name,
        "service_account": request.service_account,
        "pipeline_root": request.pipeline_root,
        "network": request.network,
        "parameters": dict(request.parameters),
    }
    lines = [f"{key:16} {value}" for key, value in shown.items() if key != "parameters"]
    lines += [f"  {key} = {value!r}" for key, value in request.parameters.items()]
    output.give(shown, as_json=as_json, lines=lines)


def warn_about_image(settings: Settings) -> None:
    """Say that a service will hardly find the default image."""
    if not settings.pipeline.image and settings.sandbox is None:
        output.say("pipeline.image is empty: the service must find `streamway:0.1.0` by itself.", style="yellow")


class _Follower:
    """Tells each change of a run and of its tasks."""

    def __init__(self) -> None:
        self._told: dict[str, str] = {}

    def __call__(self, run: RunStatus) -> None:
        for name, state in [(run.id, run.state), *((task.name, task.state) for task in run.tasks)]:
            if self._told.get(name, "pending") != state:
                output.say(f"  {name} is {state}", style="red" if state == "failed" else "dim")
            self._told[name] = state


def _explain(run: RunStatus, settings: Settings, place: str) -> dict[str, Any]:
    """Find the failed step's own words in the run's journal; the service only knows which task it was."""
    run_uri = storage.join(settings.storage.release_root, ".runs", run.id)
    try:
        journal = RunJournal.load(run_uri)
    except StreamwayError as error:
        output.say(f"The run's journal cannot be read: {error.problem}", style="yellow")
        journal = RunJournal(run_uri=run_uri, records=())
    if journal.failed is not None and journal.failed.error:
        return dict(journal.failed.error)
    resource = f"{place}/pipelineJobs/{run.id}"
    silence = explain_silence(journal, state=run.state.upper(), message=run.error, resource=resource)
    return {
        "problem": f"{run.id}: {silence.problem} The service says: {run.error or 'nothing'}",
        "next_step": f"Look at {run.page}. {silence.next_step}",
        "exit_code": LaunchError.exit_code,
    }


def run_lines(run: RunStatus) -> list[str]:
    """Describe a run, with its tasks."""
    lines = [f"Run       {run.id}", f"State     {run.state}", f"Page      {run.page}"]
    if run.error:
        lines.append(f"Error     {run.error}")
    return lines + [f"  {task.state:14} {task.name}" for task in run.tasks]
