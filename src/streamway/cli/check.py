"""`streamway check`: everything that can be known before a byte moves."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click

from streamway import cache, cluster, hub, server, storage
from streamway.cache_control import zone_in_location
from streamway.cli import output
from streamway.cli.choices import plan_model, planned_server
from streamway.cli.configuration import environment_of, load_settings
from streamway.cli.options import config_argument, json_option, set_option, state_option
from streamway.errors import PolicyError, SettingsError, StreamwayError
from streamway.report.words import format_bytes
from streamway.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Checked:
    """One thing that was looked at.

    Args:
        name: What was looked at.
        ok: Whether the run could go on.
        found: What is there, or what is wrong.
        next_step: What to do where it is wrong.
        exit_code: Exit code of the problem; 0 where there is none.
    """

    name: str
    ok: bool
    found: str
    next_step: str = ""
    exit_code: int = 0


class Subject:
    """What is looked at: a configuration, and the plan of its model, which the Hub is asked for once for all rows."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._planned: hub.PullPlan | StreamwayError | None = None

    @property
    def plan(self) -> hub.PullPlan:
        """What pulling the model would take.

        Raises:
            StreamwayError: the model cannot be had; says the same to every row.
        """
        if self._planned is None:
            try:
                self._planned = plan_model(self.settings)
            except StreamwayError as error:
                self._planned = error
        if isinstance(self._planned, StreamwayError):
            raise self._planned
        return self._planned


@click.command()
@config_argument
@set_option
@state_option
@json_option
@click.pass_context
def check(context: click.Context, config: Path, overrides: tuple[str, ...], state_path: Path, as_json: bool) -> None:
    """Look at everything CONFIG needs, and move nothing.

    The model and its licence, the bucket, the zones against the bucket's location, what their caches cost, the project
    with its billing and services, the cluster and the manifests.
    Exits with the code of the first thing that is wrong.
    """
    settings = load_settings(config, overrides)
    with environment_of(settings, state_path.absolute()):
        subject = Subject(settings)
        results = [_look(name, look, subject) for name, look in CHECKS.items()]
    lines = [line for result in results for line in _lines(result)]
    output.give(results, as_json=as_json, lines=lines)
    context.exit(next((result.exit_code for result in results if not result.ok), 0))


def _look(name: str, look: Callable[[Subject], str], subject: Subject) -> Checked:
    try:
        return Checked(name=name, ok=True, found=look(subject))
    except StreamwayError as error:
        return Checked(name=name, ok=False, found=error.problem, next_step=error.next_step, exit_code=error.exit_code)


def _lines(result: Checked) -> list[str]:
    mark = "ok  " if result.ok else "FAIL"
    lines = [f"{mark}  {result.name:8}  {result.found}"]
    if result.next_step:
        lines.append(f"                Next: {result.next_step}")
    return lines


def _model(subject: Subject) -> str:
    plan = subject.plan
    if plan.refused:
        raise PolicyError(plan.refused)
    there = format_bytes(plan.size_bytes - plan.move_bytes)
    return (
        f"{plan.model_id} at {plan.commit_sha[:12]}, licence {plan.licence}, {len(plan.files)} files, "
        f"{format_bytes(plan.size_bytes)}, of which {there} are already there"
    )


def _storage(subject: Subject) -> str:
    root = subject.settings.storage.release_root
    if not storage.is_gs(root):
        return f"releases go to the folder {root}"
    bucket = storage.describe_bucket(storage.bucket_of(root))
    return f"gs://{bucket.name} in {bucket.location}"


def _caches(subject: Subject) -> str:
    settings = subject.settings
    zones = settings.cache.plain_zones()
    if not zones:
        return "no zone is to be cached"
    root = settings.storage.release_root
    if not storage.is_gs(root):
        raise SettingsError(
            f"cache.zones names {', '.join(zones)}, but {root} is a folder and only buckets are cached.",
            next_step="Remove the zones, or release to gs://.",
        )
    zones = list(cluster.resolve_zones(zones, settings.server.cluster))
    cache.check_zones(bucket=storage.bucket_of(root), zones=zones)
    return f"{', '.join(zones)}, in the bucket's location"


def _cost(subject: Subject) -> str:
    """What holding the release in a cache of each zone would cost, so that it is known before one is made."""
    settings = subject.settings
    zones = settings.cache.plain_zones()
    if not zones or not storage.is_gs(settings.storage.release_root):
        return "no cache is to be paid for"
    try:
        zones = list(cluster.resolve_zones(zones, settings.server.cluster))
        return str(cache.estimate_cost(subject.plan.size_bytes, zones))
    except StreamwayError:
        # What is wrong with the model or the cluster is said where it is looked at for its own sake.
        return "of the caches not known, because the model or their zones are not"


def _project(subject: Subject) -> str:
    settings = subject.settings
    of_secrets = settings.model.token_secret or settings.watch.webhook_secret
    found = cluster.check_project(settings.server.cluster, services=["secretmanager"] if of_secrets else [])
    if found is None:
        return "the cluster is not named as GKE's, so its project is not asked about"
    return f"{found.name}{''.join(f'; {said}' for said in found.unknown)}"


def _cluster(subject: Subject) -> str:
    settings, chosen = subject.settings, subject.settings.server
    connection = cluster.connect(chosen.cluster)
    cluster.check_zone(settings.pod_zone, chosen.cluster)
    lacking = server.check_permissions(
        namespace=chosen.namespace,
        cluster=chosen.cluster,
        warm_start=chosen.warm_start,
        blue_green=chosen.strategy == "blue_green",
    )
    version = connection.get("/version").get("gitVersion", "unknown")
    helpful = f"; not allowed and not needed: {'; '.join(lacking)}" if lacking else ""
    return f"{connection.address} answers, Kubernetes {version}{helpful}{_distance(settings)}"


def _distance(settings: Settings) -> str:
    """What to know where pods would read from another region: it works, slowly, and is charged for."""
    root, zone = settings.storage.release_root, settings.pod_zone
    if not storage.is_gs(root):
        return ""
    try:
        bucket = storage.describe_bucket(storage.bucket_of(root))
        zones = [zone] if zone else cluster.resolve_zones([cluster.EVERY_ZONE], settings.server.cluster)
    except StreamwayError:
        # What is wrong with either is said where it is looked at for its own sake.
        return ""
    away = [one for one in zones if zone_in_location(one, bucket.location) is False]
    if not away:
        return ""
    return (
        f"; pods in {', '.join(away)} would read gs://{bucket.name}, which is in {bucket.location}, from another "
        "region: slowly, for a charge, and never from a cache"
    )


def _manifests(subject: Subject) -> str:
    manifests = server.render(planned_server(subject.settings, subject.plan))
    return ", ".join(f"{manifest['kind']} {manifest['metadata']['name']}" for manifest in manifests)


CHECKS: dict[str, Callable[[Subject], str]] = {
    "model": _model,
    "storage": _storage,
    "caches": _caches,
    "cost": _cost,
    "project": _project,
    "cluster": _cluster,
    "server": _manifests,
}
