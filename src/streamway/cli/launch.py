"""`streamway submit`, `runs` and `publish`: pipelines on Vertex AI, or on a Kubeflow API with --kfp."""

import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from streamway.cli import output
from streamway.cli.configuration import load_settings, point_at_sandbox
from streamway.cli.options import (
    config_argument,
    dry_run_option,
    json_option,
    kfp_option,
    set_option,
    state_option,
    wait_options,
    with_options,
)
from streamway.cli.service import Following, connect, run_lines, submit_pipeline, warn_about_image
from streamway.errors import LaunchError
from streamway.launch import compile_pipeline
from streamway.launch.kfp_api import KubeflowService
from streamway.launch.publish import publish_template


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
    following = Following(dry_run=dry_run, wait=wait, timeout_minutes=timeout_minutes, as_json=as_json)
    context.exit(submit_pipeline(settings, state_path, "serve_model", settings.parameters(), kfp_url, following))


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
        output.give(found, as_json=as_json, lines=run_lines(found))
        return
    listed = service.list_runs(limit=limit)
    lines = [f"{run.state:10} {run.id:60} {run.created[:19]:20} {run.page}" for run in listed]
    output.give(listed, as_json=as_json, lines=lines or [f"There are no runs in {service.place}."])


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
    if kfp_url and len(tags) > 1:
        raise LaunchError(
            f"--tag is given {len(tags)} times, and Kubeflow gives a version one name.",
            next_step="Give one --tag with --kfp.",
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
