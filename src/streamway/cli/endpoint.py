"""`streamway status` and `streamway rollback`: an endpoint as it is, and the way back."""

import dataclasses

import click

from streamway import server, warm_start
from streamway.cli import output
from streamway.cli.options import json_option

name_argument = click.argument("name")
namespace_option = click.option("--namespace", default="models", show_default=True, help="Kubernetes namespace.")
cluster_option = click.option(
    "--cluster", default="", help="projects/P/locations/L/clusters/C; empty for the current kubeconfig."
)


@click.command()
@name_argument
@namespace_option
@cluster_option
@json_option
def status(name: str, namespace: str, cluster: str, as_json: bool) -> None:
    """Say what endpoint NAME serves, since when, and what it could go back to."""
    found = server.read_status(name=name, namespace=namespace, cluster=cluster)
    kits = warm_start.read_kit_status([revision.release_uri for revision in found.revisions])
    lines = _status_lines(found) + [f"  {'warm start':10} {kit.line()}" for kit in kits]
    output.give({**dataclasses.asdict(found), "kits": kits}, as_json=as_json, lines=lines)


@click.command()
@name_argument
@namespace_option
@cluster_option
@click.option("--revision", default="", help="The revision to serve; empty for the one that served before.")
@json_option
def rollback(name: str, namespace: str, cluster: str, revision: str, as_json: bool) -> None:
    """Let endpoint NAME serve an earlier revision again."""
    with output.narrated():
        found = server.rollback(
            name=name, namespace=namespace, cluster=cluster, revision=revision, drop_kit=warm_start.drop_kit
        )
    output.give(found, as_json=as_json, lines=_status_lines(found))


def _status_lines(found: server.EndpointStatus) -> list[str]:
    lines = [
        f"Endpoint  {found.namespace}/{found.name}",
        f"Serving   {found.active or 'nothing'}{f', since {found.active_since}' if found.active_since else ''}",
        f"Tested    {found.last_smoke_test or 'never'}",
    ]
    return lines + [
        f"  {revision.role:10} {revision.name:16} {revision.model_id} at {revision.commit_sha[:12]}, "
        f"{revision.ready} of {revision.replicas} pods ready, {revision.image}"
        for revision in found.revisions
    ]
