"""Each step by itself: useful alone, and the way to look closer at one that fails."""

from pathlib import Path
from typing import Any

import click

from streamway import cache as cache_room
from streamway import hub, server, storage, warm_start, weights
from streamway import smoke as smoke_room
from streamway.cli import output
from streamway.cli.lines import plan_lines, smoke_lines
from streamway.cli.options import (
    config_argument,
    environment_of,
    json_option,
    load_settings,
    planned_server,
    server_choices,
    set_option,
    state_option,
)
from streamway.errors import PolicyError, ReleaseError, SmokeTestError
from streamway.report.page import format_bytes
from streamway.settings import Settings

memory_option = click.option(
    "--memory-mib", default=256, show_default=True, type=click.IntRange(min=32), help="Most memory for bytes in flight."
)


@click.command()
@click.argument("model_id")
@click.argument("release_root")
@click.option("--revision", default="main", show_default=True, help="Branch, tag or commit.")
@click.option("--token-secret", default="", help="Secret Manager resource name of a Hub token.")
@click.option("--allow-licence", "allowed_licences", multiple=True, help="Licence that may be served; may be repeated.")
@click.option("--allow-remote-code", is_flag=True, help="Accept a model that brings its own Python code.")
@click.option("--dry-run", is_flag=True, help="Say what would be moved, and move nothing.")
@memory_option
@json_option
def pull(model_id: str, release_root: str, dry_run: bool, memory_mib: int, as_json: bool, **choices: Any) -> None:
    """Pull MODEL_ID from the Hub to the staging place of RELEASE_ROOT (gs://BUCKET/PREFIX or a folder)."""
    wanted = {
        "model_id": model_id,
        "release_root": release_root,
        "revision": choices["revision"],
        "token": hub.read_token(choices["token_secret"]),
        "allowed_licences": choices["allowed_licences"],
        "allow_remote_code": choices["allow_remote_code"],
    }
    with output.narrated():
        if dry_run:
            plan = hub.plan_pull(**wanted)
            output.give(plan, as_json=as_json, lines=plan_lines(plan))
            if plan.refused:
                raise PolicyError(plan.refused)
            return
        with output.progress("Pull") as on_progress:
            pulled = hub.pull_model(**wanted, memory_bytes=memory_mib << 20, on_progress=on_progress)
    lines = [
        f"{pulled.model_id} at {pulled.commit_sha} ({pulled.licence})",
        f"{format_bytes(pulled.moved_bytes)} moved of {format_bytes(pulled.size_bytes)}",
        pulled.uri,
    ]
    output.give(pulled, as_json=as_json, lines=lines)


@click.command()
@click.argument("source")
@click.argument("target")
@memory_option
@json_option
def convert(source: str, target: str, memory_mib: int, as_json: bool) -> None:
    """Convert the checkpoint in SOURCE to safetensors in TARGET; both are folders or gs:// prefixes.

    Pickles are read without being run, and every tensor of the result is proved equal to its source.
    """
    with output.narrated(), output.progress("Convert") as on_progress:
        converted = weights.convert_weights(
            snapshot_uri=source,
            weights_uri=target,
            copy_unchanged=True,
            memory_bytes=memory_mib << 20,
            on_progress=on_progress,
        )
    output.give(converted, as_json=as_json, lines=weights.report_lines(converted))


@click.command()
@click.argument("uri")
@json_option
@click.pass_context
def validate(context: click.Context, uri: str, as_json: bool) -> None:
    """Judge the safetensors in URI, a folder or a gs:// prefix; exits with 34 when a server would fail on it."""
    found = weights.validate(uri)
    output.give(found, as_json=as_json, lines=found.lines())
    if not found.ok:
        context.exit(34)


@click.command()
@click.argument("weights_uri")
@click.argument("release_root")
@memory_option
@json_option
def upload(weights_uri: str, release_root: str, memory_mib: int, as_json: bool) -> None:
    """Publish the converted model in WEIGHTS_URI under RELEASE_ROOT, its manifest last."""
    with output.narrated(), output.progress("Upload") as on_progress:
        published = storage.upload_model(
            weights_uri=weights_uri, release_root=release_root, memory_bytes=memory_mib << 20, on_progress=on_progress
        )
    moved = f"{format_bytes(published.moved_bytes)} moved of {format_bytes(published.size_bytes)}"
    output.give(published, as_json=as_json, lines=[published.uri, moved])


@click.command()
@click.argument("bucket")
@click.argument("zones", nargs=-1, required=True)
@click.option("--ttl-hours", default=24.0, show_default=True, help="How long an entry lives, 1 to 168.")
@click.option("--ingest-on-write", is_flag=True, help="Fill the cache by uploads, instead of first reads.")
@click.option("--wait", type=click.Choice(["none", "running"]), default="none", show_default=True)
@click.option("--timeout-seconds", default=7200.0, show_default=True, help="Longest wait.")
@json_option
def cache(
    bucket: str,
    zones: tuple[str, ...],
    ttl_hours: float,
    ingest_on_write: bool,
    wait: str,
    timeout_seconds: float,
    as_json: bool,
) -> None:
    """Create, update or resume the Anywhere Cache of BUCKET in each of ZONES."""
    with output.narrated():
        enabled = cache_room.enable_cache(
            bucket=bucket,
            zones=zones,
            ttl_seconds=int(ttl_hours * 3600),
            ingest_on_write=ingest_on_write,
            wait=wait,
            timeout_seconds=timeout_seconds,
        )
    output.give(enabled, as_json=as_json, lines=[f"{zone.zone}  {zone.state}" for zone in enabled.zones])


@click.command()
@config_argument
@click.option("--release", "release_uri", default="", help="A published release; without it, what a run would publish.")
@set_option
@state_option
def render(config: Path, release_uri: str, overrides: tuple[str, ...], state_path: Path) -> None:
    """Print the manifests that `deploy` would apply, for review or for kubectl."""
    settings = load_settings(config, overrides)
    with environment_of(settings, state_path.absolute()):
        given = _server_arguments(settings, release_uri) if release_uri else None
        spec = server.ServerSpec(**given) if given else planned_server(settings)
        click.echo(server.to_yaml(server.render(spec)), nl=False)


@click.command()
@config_argument
@click.option("--release", "release_uri", required=True, help="The published release to serve.")
@set_option
@state_option
@json_option
def deploy(config: Path, release_uri: str, overrides: tuple[str, ...], state_path: Path, as_json: bool) -> None:
    """Deploy a published release as CONFIG says, and watch it until it is ready."""
    settings = load_settings(config, overrides)
    with environment_of(settings, state_path.absolute()), output.narrated():
        deployed = server.deploy_server(
            **_server_arguments(settings, release_uri),
            cluster=settings.server.cluster,
            strategy=settings.server.strategy,
            keep_seconds=settings.server.keep_hours * 3600,
            find_kit=warm_start.finder(release_uri),
            drop_kit=warm_start.drop_kit,
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
    output.give(verdict, as_json=as_json, lines=smoke_lines(verdict))


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
        **server_choices(settings),
    }
