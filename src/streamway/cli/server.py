"""`streamway render`, `deploy` and `smoke`: a release on the cluster, step by step."""

from pathlib import Path
from typing import Any

import click

from streamway import gate, server, storage, warm_start
from streamway import smoke as smoke_room
from streamway.cli import output
from streamway.cli.choices import plan_model, planned_server, server_choices
from streamway.cli.configuration import environment_of, load_settings
from streamway.cli.options import config_argument, json_option, set_option, state_option
from streamway.errors import ReleaseError, SmokeTestError
from streamway.report.words import format_bytes, format_seconds
from streamway.settings import Settings


@click.command()
@config_argument
@click.option("--release", "release_uri", default="", help="A published release; without it, what a run would publish.")
@set_option
@state_option
@json_option
def render(config: Path, release_uri: str, overrides: tuple[str, ...], state_path: Path, as_json: bool) -> None:
    """Print the manifests that `deploy` would apply, for review or for kubectl.

    What was derived for them is told on stderr; --json has both.
    """
    settings = load_settings(config, overrides)
    with environment_of(settings, state_path.absolute()):
        given = _server_arguments(settings, release_uri) if release_uri else None
        spec = server.ServerSpec(**given) if given else planned_server(settings, plan_model(settings))
        manifests, derived = server.render(spec), server.derive(spec)
        output.say(f"{derived.gpu_count} x {spec.accelerator}, such as {', '.join(derived.machine_types)}", style="dim")
        output.say(_pod_words(derived), style="dim")
        output.say(derived.context.said, style="dim")
        if as_json:
            output.give({"manifests": manifests, "derived": derived}, as_json=True, lines=[])
        else:
            click.echo(server.to_yaml(manifests), nl=False)


@click.command()
@config_argument
@click.option("--release", "release_uri", required=True, help="The published release to serve.")
@click.option("--force", is_flag=True, help="Take over fields that another manager owns.")
@set_option
@state_option
@json_option
def deploy(
    config: Path, release_uri: str, force: bool, overrides: tuple[str, ...], state_path: Path, as_json: bool
) -> None:
    """Deploy a published release as CONFIG says, and watch it until it serves.

    It serves once it has answered the questions of CONFIG; until then, and where it answers wrongly, what served before
    does. Exits with 71 when an answer is wrong.
    """
    settings = load_settings(config, overrides)
    chosen = settings.server
    with environment_of(settings, state_path.absolute()), output.narrated():
        arguments = _server_arguments(settings, release_uri)
        deployed = server.deploy_server(
            **arguments,
            cluster=chosen.cluster,
            strategy=chosen.strategy,
            keep_seconds=chosen.keep_hours * 3600,
            stopper_image=chosen.stopper_image,
            find_kit=warm_start.finder(release_uri),
            drop_kit=warm_start.drop_kit,
            verify=_prover(settings, arguments),
            force=force,
        )
        warm_start.keep_kit(
            name=chosen.name, namespace=chosen.namespace, revision=deployed.revision, cluster=chosen.cluster
        )
    output.give(deployed, as_json=as_json, lines=[f"{deployed.namespace}/{deployed.service}:{deployed.port} is ready"])


@click.command()
@config_argument
@set_option
@state_option
@json_option
def smoke(config: Path, overrides: tuple[str, ...], state_path: Path, as_json: bool) -> None:
    """Ask the endpoint of CONFIG its questions; exits with 71 when an answer is wrong."""
    settings = load_settings(config, overrides)
    with environment_of(settings, state_path.absolute()), output.narrated():
        chosen = settings.server
        found = server.read_status(name=chosen.name, namespace=chosen.namespace, cluster=chosen.cluster)
        active = next((revision for revision in found.revisions if revision.role == "active"), None)
        if active is None:
            raise SmokeTestError(
                f"Endpoint {chosen.namespace}/{chosen.name} serves nothing.", next_step="Run the pipeline first."
            )
        verdict = smoke_room.smoke_test(
            cluster=chosen.cluster,
            namespace=chosen.namespace,
            service=chosen.name,
            port=server.PORT,
            served_model_name=active.served_model_name,
            commit_sha=active.commit_sha,
            questions=smoke_room.parse_questions(settings.smoke.plain_questions()),
            chat_required=settings.smoke.chat_required,
            min_context_tokens=settings.smoke.min_context_length,
        )
    output.give(verdict, as_json=as_json, lines=_smoke_lines(verdict))


def _pod_words(derived: server.Derived) -> str:
    """What each pod gets, derived or as the configuration says."""
    resources, startup = derived.resources, format_seconds(derived.budgets.startup_seconds)
    return (
        f"each pod: {resources.cpus:g} CPU, {format_bytes(resources.memory_bytes)} of memory, of which the streamer "
        f"takes at most {format_bytes(derived.streamer_memory_bytes)}, {format_bytes(resources.ephemeral_bytes)} of "
        f"local disk, {startup} to start"
    )


def _server_arguments(settings: Settings, release_uri: str) -> dict[str, Any]:
    release = storage.find_release(release_uri)
    if release is None:
        raise ReleaseError(
            f"{release_uri} is not a published release: it has no manifest.",
            next_step="Give the release that `streamway upload` or `streamway run` printed.",
        )
    return {
        "release_uri": release.uri,
        "model_id": release.manifest.model_id,
        "commit_sha": release.manifest.commit_sha,
        "size_bytes": release.size_bytes,
        "model_config": server.read_model_config(release.uri),
        **server_choices(settings),
    }


def _prover(settings: Settings, arguments: dict[str, Any]) -> server.Verify:
    """What a release must answer before it serves, as the smoke test of a run asks it."""
    return gate.prover(
        name=arguments["name"],
        namespace=arguments["namespace"],
        served_model_name=arguments["served_model_name"] or arguments["model_id"],
        commit_sha=arguments["commit_sha"],
        cluster=settings.server.cluster,
        expected=gate.Expectations(**settings.smoke.expectations()),
    )


def _smoke_lines(report: smoke_room.SmokeReport) -> list[str]:
    """Describe what an endpoint was asked and how it did."""
    lines = [f"{'ok  ' if check.ok else 'FAIL'}  {check.name}: {check.found}" for check in report.checks]
    lines += [f"Asked     {answer.prompt}\nAnswered  {answer.text}" for answer in report.answers]
    return lines + [f"{name:28} {value:.3f}" for name, value in report.metrics.items()]
