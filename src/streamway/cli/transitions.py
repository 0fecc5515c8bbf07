"""`streamway promote` and `streamway retire`: what moves a model on from where it is."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from streamway import report, storage
from streamway.cli import output
from streamway.cli.configuration import environment_of, load_settings
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
from streamway.cli.service import Following, submit_pipeline
from streamway.launch import compile_pipeline, run_locally
from streamway.launch.local import StepEvent
from streamway.settings import Settings
from streamway.storage.gates import check_passages

if TYPE_CHECKING:
    from streamway.retirement import RetirementPlan

submit_option = click.option("--submit", "on_service", is_flag=True, help="Start it on Vertex AI instead of here.")


@click.command("promote")
@with_options(config_argument, click.argument("commit_sha"), set_option, state_option, kfp_option, submit_option)
@with_options(*wait_options, dry_run_option, json_option)
@click.pass_context
def promote_command(
    context: click.Context,
    config: Path,
    commit_sha: str,
    overrides: tuple[str, ...],
    state_path: Path,
    kfp_url: str,
    on_service: bool,
    wait: bool,
    timeout_minutes: float,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Serve COMMIT_SHA, which has passed elsewhere, as CONFIG says: copied, deployed and proved, without the Hub.

    Refused, with what is missing, unless the release has passed every stage of promotion.requires.
    """
    settings = load_settings(config, overrides)
    parameters = settings.promotion_parameters(commit_sha)
    if on_service or kfp_url:
        following = Following(dry_run=dry_run, wait=wait, timeout_minutes=timeout_minutes, as_json=as_json)
        context.exit(submit_pipeline(settings, state_path, "promote_model", parameters, kfp_url, following))
    with environment_of(settings, state_path.absolute()):
        if dry_run:
            _show_gates(parameters, as_json=as_json)
            return
        context.exit(_run_here(settings, "promote_model", parameters, state_path, as_json=as_json))


@click.command("retire")
@with_options(config_argument, set_option, state_option, kfp_option, submit_option, *wait_options)
@click.option("--caches", is_flag=True, help="Disable the caches of the cache section too.")
@click.option(
    "--cache-wait-minutes",
    default=0.0,
    show_default=True,
    help="Longest wait until these caches are gone, which takes about an hour; 0 waits for nothing.",
)
@click.option("--releases", is_flag=True, help="Delete the releases that the endpoint serves from too.")
@click.option("--older-releases", is_flag=True, help="With --releases: every other release of its models as well.")
@click.option("--despite-unseen", is_flag=True, help="Go on although some namespaces cannot be looked into.")
@with_options(dry_run_option, json_option)
@click.pass_context
def retire_command(
    context: click.Context,
    config: Path,
    overrides: tuple[str, ...],
    state_path: Path,
    kfp_url: str,
    on_service: bool,
    wait: bool,
    timeout_minutes: float,
    caches: bool,
    cache_wait_minutes: float,
    releases: bool,
    older_releases: bool,
    despite_unseen: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Take the endpoint of CONFIG away; refused where something else serves from what would go."""
    settings = load_settings(config, overrides)
    parameters = settings.retirement_parameters(
        caches=caches,
        releases=releases,
        older_releases=older_releases,
        despite_unseen=despite_unseen,
        cache_wait_minutes=cache_wait_minutes,
    )
    if on_service or kfp_url:
        following = Following(dry_run=dry_run, wait=wait, timeout_minutes=timeout_minutes, as_json=as_json)
        context.exit(submit_pipeline(settings, state_path, "retire_model", parameters, kfp_url, following))
    with environment_of(settings, state_path.absolute()):
        if dry_run:
            plan = _plan_retirement(parameters)
            output.give(plan, as_json=as_json, lines=plan.lines())
            return
        context.exit(_run_here(settings, "retire_model", parameters, state_path, as_json=as_json))


def _plan_retirement(parameters: dict[str, Any]) -> "RetirementPlan":
    """Find what a run of retire_model with these parameters would take away.

    Raises:
        InUseError: it would refuse.
    """
    from streamway import retirement

    wanted = {key: value for key, value in parameters.items() if key != "cache_wait_minutes"}
    run_uri = storage.join(parameters["release_root"], ".runs", "dry-run")
    served = report.served_releases(run_uri, name=parameters["name"], namespace=parameters["namespace"])
    return retirement.plan_retirement(**wanted, remembered=served)


def _run_here(settings: Settings, pipeline: str, parameters: dict[str, Any], state_path: Path, *, as_json: bool) -> int:
    """Run a pipeline by the local runner, and return the exit code."""
    folder = state_path / "runs" / datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    compiled = compile_pipeline(pipeline, folder / f"{pipeline}.yaml", image=settings.pipeline.image)
    finished = run_locally(compiled, parameters, folder=folder, environment={}, on_event=_narrate)
    outcome = {"succeeded": finished.succeeded, "report": str(finished.report_path or ""), "error": finished.error}
    if finished.succeeded:
        output.give(outcome, as_json=as_json, lines=[f"Done      {pipeline}", f"Report    {outcome['report']}"])
        return 0
    error = finished.error or {"problem": "No step said why it failed.", "next_step": f"Read {finished.log_path}."}
    output.show_error(str(error["problem"]), str(error["next_step"]))
    if as_json:
        output.give(outcome, as_json=True, lines=[])
    return int(error.get("exit_code", 1))


def _narrate(event: StepEvent) -> None:
    said = {"started": "begins", "succeeded": f"done in {event.text} s", "failed": "failed"}
    output.say(f"  {event.step}: {said.get(event.kind, event.text)}", style="red" if event.kind == "failed" else "dim")


def _show_gates(parameters: dict[str, Any], *, as_json: bool) -> None:
    """Show what a release has passed.

    Raises:
        GateError: it has not passed what it must.
    """
    passages = check_passages(
        model_id=parameters["model_id"],
        commit_sha=parameters["commit_sha"],
        release_root=parameters["source_root"],
        requires=parameters["requires"],
    )
    lines = [f"{passage.stage:12} passed {passage.passed}  {passage.run_uri}" for passage in passages]
    output.give(passages, as_json=as_json, lines=lines or ["No stage is required."])
