"""`streamway submit`, `runs`, `schedule` and `publish`: pipelines on Vertex AI, or on a Kubeflow API with --kfp."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from streamway import sandbox, storage
from streamway.cli import output
from streamway.cli.options import config_argument, json_option, load_settings, set_option, state_option
from streamway.cron import Cron
from streamway.errors import LaunchError, SandboxError, StreamwayError
from streamway.launch import compile_pipeline
from streamway.launch.kfp_api import KubeflowService
from streamway.launch.publish import publish_template
from streamway.launch.schedules import create_schedule, find_by_name
from streamway.launch.service import (
    SUCCEEDED,
    PipelineService,
    RunRequest,
    RunStatus,
    ScheduleRequest,
    ScheduleStatus,
    submit,
    wait_for_run,
)
from streamway.launch.vertex import VertexService
from streamway.report.journal import RunJournal
from streamway.settings import Settings

kfp_option = click.option("--kfp", "kfp_url", default="", metavar="URL", help="A Kubeflow API instead of Vertex AI.")
wait_options = (
    click.option("--wait", is_flag=True, help="Follow the run until it is over; exits with its outcome."),
    click.option("--timeout-minutes", default=24 * 60.0, show_default=True, help="Longest wait; the run goes on."),
)
dry_run_option = click.option("--dry-run", is_flag=True, help="Say what would be asked for, and ask for nothing.")


def with_options(*options: Callable[..., Any]) -> Callable[..., Any]:
    """Add several options to a command, in order."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


@click.command("submit")
@with_options(config_argument, set_option, state_option, kfp_option, *wait_options, dry_run_option, json_option)
@click.pass_context
def submit_command(
    context: click.Context,
    config: Path,
    overrides: tuple[str, ...],
    state_path: Path,
    kfp_url: str,
    wait: bool,
    timeout_minutes: float,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Start the pipeline of CONFIG on Vertex AI.

    The same submission, made twice at a time, starts one run; the second one joins it.
    """
    settings = load_settings(config, overrides)
    with started(settings, state_path, "serve_model", settings.parameters(), kfp_url) as (service, request):
        if dry_run:
            show_request(service, request, as_json=as_json)
            return
        context.exit(start(service, request, settings, wait=wait, minutes=timeout_minutes, as_json=as_json))


@click.command("runs")
@with_options(config_argument, set_option, state_option, kfp_option)
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 500), help="How many, newest first.")
@click.option("--id", "run_id", default="", help="Only this one, with its tasks.")
@json_option
def runs_command(
    config: Path,
    overrides: tuple[str, ...],
    state_path: Path,
    kfp_url: str,
    limit: int,
    run_id: str,
    as_json: bool,
) -> None:
    """List the runs where CONFIG starts them, with their live state and page."""
    settings = load_settings(config, overrides)
    service = connect(settings, state_path, kfp_url)
    if run_id:
        found = service.find_run(run_id)
        if found is None:
            raise LaunchError(f"There is no run {run_id!r} in {service.place}.", next_step="List them without --id.")
        output.give(found, as_json=as_json, lines=_run_lines(found))
        return
    listed = service.list_runs(limit=limit)
    lines = [f"{run.state:10} {run.id:60} {run.created[:19]:20} {run.page}" for run in listed]
    output.give(listed, as_json=as_json, lines=lines or [f"There are no runs in {service.place}."])


@click.group("schedule")
def schedule_group() -> None:
    """Schedules of the pipeline: made, read back and compared, paused, resumed, deleted.

    A scheduled run of a model that has not changed moves nothing and changes nothing.
    """


@schedule_group.command("create")
@with_options(config_argument, click.argument("cron"), set_option, state_option, kfp_option)
@click.option("--time-zone", default="UTC", show_default=True, help="IANA name, such as Europe/Berlin.")
@click.option("--name", default="", help="Its name; the endpoint's by default.")
@click.option("--end", default="", help="RFC 3339 time after which nothing is started.")
@dry_run_option
@json_option
def schedule_create(
    config: Path,
    cron: str,
    overrides: tuple[str, ...],
    state_path: Path,
    kfp_url: str,
    time_zone: str,
    name: str,
    end: str,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Run CONFIG's pipeline at the times of CRON, such as '30 4 * * mon-fri'."""
    settings = load_settings(config, overrides)
    parsed = Cron.parse(cron, zone=time_zone)
    for moment in parsed.upcoming(datetime.now(UTC), 3):
        output.say(f"  would fire at {moment:%Y-%m-%d %H:%M} UTC", style="dim")
    with started(settings, state_path, "serve_model", settings.parameters(), kfp_url) as (service, run):
        if dry_run:
            show_request(service, run, as_json=as_json)
            return
        request = ScheduleRequest(name=name or settings.server.name, cron=parsed, run=run, end=end)
        location = "" if kfp_url else settings.launch.location
        created = create_schedule(service, request, location=location)
    output.give(created, as_json=as_json, lines=_schedule_lines(created))


@schedule_group.command("list")
@with_options(config_argument, set_option, state_option, kfp_option, json_option)
def schedule_list(config: Path, overrides: tuple[str, ...], state_path: Path, kfp_url: str, as_json: bool) -> None:
    """List the schedules where CONFIG starts its runs."""
    service = connect(load_settings(config, overrides), state_path, kfp_url)
    found = service.list_schedules()
    lines = [
        f"{entry.state:10} {entry.name:30} {entry.cron:20} {entry.time_zone:20} next {entry.next_run[:19] or 'never'}"
        for entry in found
    ]
    output.give(found, as_json=as_json, lines=lines or [f"There are no schedules in {service.place}."])


def _changing(verb: str, help_text: str, change: Callable[[PipelineService, str, bool], None]) -> None:
    """Add a command that changes one schedule, and shows what it is afterwards."""
    options: list[Callable[..., Any]] = [
        config_argument,
        click.argument("name"),
        set_option,
        state_option,
        kfp_option,
        json_option,
    ]
    if verb == "resume":
        options.append(click.option("--catch-up", is_flag=True, help="Also start what was missed meanwhile."))

    @schedule_group.command(verb, help=help_text)
    @with_options(*options)
    def command(
        config: Path,
        name: str,
        overrides: tuple[str, ...],
        state_path: Path,
        kfp_url: str,
        as_json: bool,
        catch_up: bool = False,
    ) -> None:
        service = connect(load_settings(config, overrides), state_path, kfp_url)
        found = find_by_name(service, name)
        change(service, found.id, catch_up)
        after = service.find_schedule(found.id)
        lines = _schedule_lines(after) if after else [f"{found.name} is deleted; runs that it started stay."]
        output.give(after or {"deleted": found.id}, as_json=as_json, lines=lines)


_changing("pause", "Let the schedule NAME start nothing until it is resumed.", lambda s, i, _: s.pause_schedule(i))
_changing("resume", "Let the schedule NAME go on.", lambda s, i, catch_up: s.resume_schedule(i, catch_up=catch_up))
_changing("delete", "Delete the schedule NAME; its runs stay.", lambda s, i, _: s.delete_schedule(i))


@click.command("publish")
@with_options(config_argument, set_option, state_option, kfp_option)
@click.option("--pipeline", "pipelines", multiple=True, help="Which one; all of them by default. May be repeated.")
@click.option("--tag", "tags", multiple=True, help="Tag, or version on Kubeflow; `latest` by default. May be repeated.")
@json_option
def publish_command(
    config: Path,
    overrides: tuple[str, ...],
    state_path: Path,
    kfp_url: str,
    pipelines: tuple[str, ...],
    tags: tuple[str, ...],
    as_json: bool,
) -> None:
    """Put the compiled pipelines where the Vertex AI page offers them, or onto a Kubeflow API."""
    from streamway.pipelines import PIPELINES

    settings = load_settings(config, overrides)
    point_at_sandbox(settings, state_path)
    warn_about_image(settings)
    if not kfp_url and not settings.launch.templates:
        raise LaunchError(
            "launch.templates is empty, so there is no repository to publish to.",
            next_step="Set it to https://LOCATION-kfp.pkg.dev/PROJECT/REPOSITORY, or give --kfp.",
        )
    published: list[Any] = []
    with tempfile.TemporaryDirectory(prefix="streamway-") as folder:
        for name in pipelines or tuple(PIPELINES):
            path = compile_pipeline(name, Path(folder) / f"{name}.yaml", image=settings.pipeline.image)
            if kfp_url:
                service = KubeflowService(kfp_url, experiment=settings.launch.experiment)
                version = tags[0] if tags else datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
                shown = name.replace("_", "-")
                published.append({"name": shown, "version": service.publish(str(path), shown, version)})
            else:
                published.append(publish_template(path, settings.launch.templates, tags=tags or ("latest",)))
    lines = [entry["name"] + "  " + entry["version"] if kfp_url else entry.uri for entry in published]
    output.give(published, as_json=as_json, lines=lines)


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


def point_at_sandbox(settings: Settings, state_path: Path) -> None:
    """Point this process at the sandbox, where the settings mean it; what is submitted must outlive this command."""
    if settings.sandbox is None:
        return
    folder = state_path.absolute() / "sandbox"
    if not sandbox.status(folder).running:
        raise SandboxError(
            f"No sandbox runs in {folder}, and what is submitted needs one that stays.",
            next_step="Start it with `streamway sandbox up`, or run the pipeline here with `streamway run`.",
        )
    os.environ.update(sandbox.environment(folder))


def start(
    service: PipelineService, request: RunRequest, settings: Settings, *, wait: bool, minutes: float, as_json: bool
) -> int:
    """Submit a request, follow it where asked to, and return the exit code."""
    run = submit(service, request)
    output.say(f"{run.id} {'was started already; joined it' if run.joined else 'is started'}: {run.page}")
    if not wait:
        output.give(run, as_json=as_json, lines=[run.id])
        return 0
    run = wait_for_run(service, run.id, timeout_seconds=60 * minutes, on_status=_Follower())
    error = {} if run.state == SUCCEEDED else _explain(run, settings)
    output.give({**vars(run), "step_error": error}, as_json=as_json, lines=_run_lines(run))
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


def _explain(run: RunStatus, settings: Settings) -> dict[str, Any]:
    """Find the failed step's own words in the run's journal; the service only knows which task it was."""
    try:
        failed = RunJournal.load(storage.join(settings.storage.release_root, ".runs", run.id)).failed
    except StreamwayError as error:
        output.say(f"The run's journal cannot be read: {error.problem}", style="yellow")
        failed = None
    if failed is not None and failed.error:
        return dict(failed.error)
    return {
        "problem": f"{run.id} is {run.state}: {run.error or 'the service does not say why'}",
        "next_step": f"Look at {run.page}.",
        "exit_code": LaunchError.exit_code,
    }


def _run_lines(run: RunStatus) -> list[str]:
    lines = [f"Run       {run.id}", f"State     {run.state}", f"Page      {run.page}"]
    if run.error:
        lines.append(f"Error     {run.error}")
    return lines + [f"  {task.state:14} {task.name}" for task in run.tasks]


def _schedule_lines(found: ScheduleStatus) -> list[str]:
    return [
        f"Schedule  {found.name} ({found.id}), {found.state}",
        f"Fires     {found.cron} in {found.time_zone}; next {found.next_run[:19] or 'never'}",
        f"Runs as   {found.service_account or 'the default account of the service'}",
        f"Page      {found.page}",
    ]
