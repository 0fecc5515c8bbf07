"""`streamway status` and `streamway rollback`: an endpoint as it is, and the way back."""

import dataclasses
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from streamway import cache, gate, server, storage, warm_start
from streamway.cache_control import ZoneCache
from streamway.cli import output
from streamway.cli.configuration import load_settings
from streamway.cli.options import json_option
from streamway.errors import StreamwayError

# Whoever looks at an endpoint in trouble does not wait long for its caches.
_CACHE_SECONDS = 10.0
# What the cluster stops by itself, it stops in one of the first minutes after.
_STOPPING = timedelta(minutes=5)

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
    """Say what endpoint NAME serves, since when, and how it was proved.

    With the revisions that it could go back to, the caches of the buckets that it streams from, and the warm-start
    kits of its releases.
    """
    found = server.read_status(name=name, namespace=namespace, cluster=cluster)
    releases = [revision.release_uri for revision in found.revisions]
    with output.narrated():
        caches = _read_caches(releases)
        kits = warm_start.read_kit_status(releases)
    lines = [
        *_status_lines(found),
        *(f"  {'cache':10} {name} in {one.zone}: {_cache_words(one)}" for name, one in caches),
        *(f"  {'warm start':10} {kit.line()}" for kit in kits),
    ]
    told = {
        **dataclasses.asdict(found),
        "caches": [{"bucket": name, **dataclasses.asdict(one)} for name, one in caches],
        "kits": kits,
    }
    output.give(told, as_json=as_json, lines=lines)


@click.command()
@name_argument
@namespace_option
@cluster_option
@click.option("--revision", default="", help="The revision to serve; empty for the one that served before.")
@click.option(
    "--questions",
    "config",
    type=click.Path(path_type=Path),
    metavar="CONFIG",
    help="A configuration, to whose questions and expectations the revision is held first, as in deploy.",
)
@json_option
def rollback(name: str, namespace: str, cluster: str, revision: str, config: Path | None, as_json: bool) -> None:
    """Let endpoint NAME serve an earlier revision again.

    The one that served before has answered correctly and takes over as soon as it is ready; any other must first answer
    what fits it: a question, or, where it serves only embeddings, one of these. With --questions, whichever it is must
    first answer those of CONFIG. Exits with 71 when an answer is wrong.
    """
    expected = gate.Expectations(**load_settings(config).smoke.expectations()) if config else None
    with output.narrated():
        found = server.rollback(
            name=name,
            namespace=namespace,
            cluster=cluster,
            revision=revision,
            verify=_prover(name, namespace, cluster, revision, expected) if revision or expected else None,
            drop_kit=warm_start.drop_kit,
        )
    output.give(found, as_json=as_json, lines=_status_lines(found))


def _prover(
    name: str, namespace: str, cluster: str, revision: str, expected: gate.Expectations | None
) -> server.Verify | None:
    """What proves a revision that is not known to have answered, or shall answer something else; None without need."""
    found = server.read_status(name=name, namespace=namespace, cluster=cluster)
    wanted = next((row for row in found.revisions if row.name == (revision or found.previous)), None)
    if wanted is None or (wanted.role in ("active", "previous") and expected is None):
        return None
    return gate.prover(
        name=name,
        namespace=namespace,
        cluster=cluster,
        served_model_name=wanted.served_model_name,
        commit_sha=wanted.commit_sha,
        expected=expected or gate.Expectations(),
    )


def _read_caches(release_uris: list[str]) -> list[tuple[str, ZoneCache]]:
    """The caches of some releases' buckets; one that this account may not ask about is told and left out."""
    found: list[tuple[str, ZoneCache]] = []
    for bucket in dict.fromkeys(storage.bucket_of(uri) for uri in release_uris if storage.is_gs(uri)):
        try:
            found += [(bucket, one) for one in cache.list_caches(bucket, timeout_seconds=_CACHE_SECONDS)]
        except StreamwayError as error:
            output.say(f"The caches of gs://{bucket} cannot be told: {error.problem}", style="yellow")
    return found


def _kept_words(found: server.EndpointStatus) -> str:
    """Until when a revision is kept, and how that comes to its end."""
    until = found.keep_previous_until
    if found.stops_by_itself and until < f"{datetime.now(UTC) - _STOPPING:%Y-%m-%dT%H:%M:%SZ}":
        return (
            f"was to run until {until}, and still runs; `kubectl get cronjobs,jobs,events "
            f"--namespace={found.namespace}` says why the cluster has not stopped it"
        )
    ends = {
        None: "",
        True: ", and is stopped then",
        False: ", and then holds its GPU until the next rollout: nothing in the cluster stops it",
    }
    return f"runs on until {until}{ends[found.stops_by_itself]}"


def _pod_words(revision: server.RevisionStatus) -> str:
    if revision.replicas:
        return f"{revision.ready} of {revision.replicas} pods ready"
    return f"stopping, {revision.ready} still answering" if revision.ready else "no pods"


def _cache_words(one: ZoneCache) -> str:
    words = [one.state, f"entries live {one.ttl_seconds / 3600:g} h"]
    words += ["filled by uploads"] if one.ingest_on_write else []
    words += ["a change is under way"] if one.pending_update else []
    return ", ".join(words + ([f"since {one.since}"] if one.since else []))


_FATES = {
    "earlier": "; served earlier, no longer kept: the next rollout removes it",
    "stray": "; never served, left by an interrupted run: the next rollout removes it",
}


def _status_lines(found: server.EndpointStatus) -> list[str]:
    silent = found.active and not any(row.ready for row in found.revisions if row.name == found.active)
    lines = [
        f"Endpoint  {found.namespace}/{found.name}",
        f"Serving   {found.active or 'nothing'}{f', since {found.active_since}' if found.active_since else ''}"
        f"{'; it does not answer, because none of its pods is ready' if silent else ''}",
        f"Tested    {found.last_smoke_test or 'never'}{f', at {found.tested_at}' if found.tested_at else ''}",
    ]
    if found.keep_previous_until:
        lines.append(f"Kept      {found.previous} {_kept_words(found)}")
    return lines + [
        f"  {revision.role:10} {revision.name:16} {revision.model_id} at {revision.commit_sha[:12]}, "
        f"{_pod_words(revision)}, {revision.image}, made {revision.created}{_FATES.get(revision.role, '')}"
        for revision in found.revisions
    ]
