"""`streamway run` and `streamway compile`: the whole pipeline, here or as a file."""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from streamway.cli import output
from streamway.cli.configuration import environment_of, load_settings
from streamway.cli.options import config_argument, json_option, set_option, state_option
from streamway.errors import StreamwayError
from streamway.launch import LocalRun, compile_pipeline, run_locally
from streamway.launch.local import StepEvent
from streamway.report.journal import STEPS, RunJournal
from streamway.report.sections import TITLES
from streamway.report.words import format_bytes, format_seconds
from streamway.settings import Settings

BYTE_STEPS = ("pull_model", "convert_weights", "upload_model")


@click.command()
@config_argument
@set_option
@state_option
@json_option
@click.option("--verbose", is_flag=True, help="Show every line of every step.")
@click.pass_context
def run(
    context: click.Context, config: Path, overrides: tuple[str, ...], state_path: Path, as_json: bool, verbose: bool
) -> None:
    """Run the pipeline of CONFIG on this machine, by KFP's local runner.

    The six steps pull, convert, upload, cache, deploy and smoke-test. A run that stopped anywhere goes on when it is
    started again, and moves only what is missing.
    """
    settings = load_settings(config, overrides)
    folder = state_path / "runs" / datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    with environment_of(settings, state_path.absolute()):
        output.say(
            f"{settings.model.id}@{settings.model.revision} → {settings.server.namespace}/{settings.server.name}"
        )
        compiled = compile_pipeline("serve_model", folder / "serve_model.yaml", image=settings.pipeline.image)
        finished = run_locally(
            compiled, settings.parameters(), folder=folder, environment={}, on_event=_Narrator(verbose=verbose)
        )
        summary = _summarise(settings, finished, folder)
        _finish(summary, finished, as_json)
    if not finished.succeeded:
        context.exit(int(finished.error.get("exit_code", 1)))


@click.command("compile")
@click.argument("pipeline", default="serve_model")
@click.option("-o", "--output", "output_path", type=click.Path(path_type=Path), help="File to write.")
@click.option("--image", default="", help="Image that the components run in, by tag or digest.")
def compile_command(pipeline: str, output_path: Path | None, image: str) -> None:
    """Compile PIPELINE to the file that Vertex AI and Kubeflow read."""
    path = compile_pipeline(pipeline, output_path or Path(f"{pipeline}.yaml"), image=image)
    click.echo(str(path))


class _Narrator:
    """Tells each step's beginning, words and end."""

    def __init__(self, *, verbose: bool) -> None:
        self._verbose = verbose
        self._began = time.monotonic()

    def __call__(self, event: StepEvent) -> None:
        title = TITLES.get(event.step, event.step)
        number = STEPS.index(event.step) + 1 if event.step in STEPS else 0
        if event.kind == "started":
            output.say(f"[{number}/{len(STEPS)}] {title}" if number else f"      {title}", style="bold")
        elif event.kind == "succeeded":
            output.say(f"      done in {format_seconds(float(event.text))}", style="green")
        elif event.kind == "failed":
            output.say("      failed", style="red")
        else:
            output.say(f"      {event.text}", style="dim")


def _summarise(settings: Settings, finished: LocalRun, folder: Path) -> dict[str, Any]:
    """Gather what the run says of itself; a run whose journal cannot be read still has its events."""
    names = [path.name for path in folder.glob("serve-model-*") if path.is_dir()]
    journal = RunJournal(run_uri="", records=())
    if names:
        run_uri = f"{settings.parameters()['release_root']}/.runs/{max(names)}"
        try:
            journal = RunJournal.load(run_uri)
        except StreamwayError as error:
            output.say(f"The run's journal cannot be read: {error.problem}", style="yellow")
    results = {record.name: record.result for record in journal.records}
    return {
        "succeeded": finished.succeeded,
        "seconds": round(finished.seconds, 1),
        "model_id": settings.model.id,
        "commit_sha": results.get("pull_model", {}).get("commit_sha", ""),
        "release": results.get("upload_model", {}).get("uri", ""),
        "size_bytes": results.get("upload_model", {}).get("size_bytes", 0),
        "moved_bytes": sum(int(results.get(name, {}).get("moved_bytes") or 0) for name in BYTE_STEPS),
        "endpoint": _endpoint(settings, results.get("deploy_server", {})),
        "served_model_name": results.get("deploy_server", {}).get("served_model_name", ""),
        "answers": results.get("smoke_test", {}).get("answers", []),
        "steps": {record.name: record.seconds for record in journal.records if record.name in journal.steps},
        "report": str(finished.report_path or ""),
        "log": str(finished.log_path),
        "error": finished.error,
    }


def _endpoint(settings: Settings, deployed: dict[str, Any]) -> str:
    """The OpenAI base address, through the API server's service proxy; "" where nothing was deployed."""
    if not deployed:
        return ""
    from streamway import cluster

    service = f"{settings.server.name}:{deployed['port']}"
    address = cluster.connect(settings.server.cluster).address
    return f"{address}/api/v1/namespaces/{settings.server.namespace}/services/{service}/proxy/v1"


def _finish(summary: dict[str, Any], finished: LocalRun, as_json: bool) -> None:
    if not finished.succeeded:
        error = finished.error or {
            "problem": "The pipeline failed, and no step said why.",
            "next_step": f"Read {finished.log_path}.",
        }
        output.show_error(str(error["problem"]), str(error["next_step"]))
        output.say(f"Report  {summary['report'] or 'none'}\nLog     {summary['log']}")
        if not as_json:
            return
    output.give(summary, as_json=as_json, lines=_summary_lines(summary))


def _summary_lines(summary: dict[str, Any]) -> list[str]:
    lines = [
        "",
        f"Endpoint  {summary['endpoint']}",
        f"Model     {summary['served_model_name']}  ({summary['model_id']} at {summary['commit_sha'][:12]})",
        f"Release   {summary['release']}",
    ]
    for answer in [answer for answer in summary["answers"] if not answer["streamed"]]:
        lines += [f"Asked     {answer.get('prompt', '')}", f"Answered  {answer.get('text', '')}"]
    lines.append(_moved_line(summary))
    timeline = ", ".join(
        f"{TITLES[name].lower()} {format_seconds(seconds)}" for name, seconds in summary["steps"].items()
    )
    lines += [f"Timeline  {timeline}; {format_seconds(summary['seconds'])} in all", f"Report    {summary['report']}"]
    return lines


def _moved_line(summary: dict[str, Any]) -> str:
    size = format_bytes(float(summary["size_bytes"]))
    if not summary["moved_bytes"]:
        return f"Moved     nothing: all {size} of this commit were already published"
    return f"Moved     {format_bytes(float(summary['moved_bytes']))} for a release of {size}"
