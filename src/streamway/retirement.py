"""Taking an endpoint away, and with it what only it used: decided before the first thing is touched.

Serving (server), caching (cache) and storing (storage) are rooms that do not know each other; this is where one
decides about the others. Nothing is taken away from under a server, because one that loses its node an hour later
would come back and find no weights. So where some namespaces may not be looked into, nothing that could be shared
goes, unless somebody who knows says so.
"""

import logging
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from streamway import cache, storage
from streamway.cluster import resolve_zones
from streamway.errors import CacheError, ClusterPermissionError, InUseError, SettingsError
from streamway.server.serving import Serving, Survey, list_serving, survey_serving
from streamway.storage.layout import MANIFEST_SUFFIX, ModelLayout, manifest_uri_of

log = logging.getLogger("streamway.retirement")

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_ANY_COMMIT = "0" * 40
_RELEASE_PATH = re.compile(r"([A-Za-z0-9][\w.-]*/){1,2}[0-9a-f]{40}")
_MANIFEST = re.compile(r"(?P<sha>[0-9a-f]{40})" + re.escape(MANIFEST_SUFFIX))
_MOST_NAMED = 5
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 30.0


@dataclass(frozen=True, kw_only=True)
class RetirementPlan:
    """What would be taken away.

    Args:
        name: Name of the endpoint.
        namespace: Its namespace.
        deployments: Its Deployments.
        releases: Releases to delete.
        bucket: Bucket whose caches are to be disabled; empty for none.
        zones: Their zones.
        forgets_starts: Whether the record of the endpoint's earlier starts goes with its releases.
        stays: Other releases of the same models, which stay because nobody asked for them.
        in_use: Other releases of the same models, which stay because something else serves from them.
        unseen: Namespaces that could not be looked into.
    """

    name: str
    namespace: str
    deployments: tuple[str, ...]
    releases: tuple[str, ...]
    bucket: str
    zones: tuple[str, ...]
    forgets_starts: bool = False
    stays: tuple[str, ...] = ()
    in_use: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Say it to a person."""
        return [
            f"Endpoint  {self.namespace}/{self.name}: {', '.join(self.deployments) or 'nothing is there'}",
            *(f"Cache     gs://{self.bucket} in {zone}" for zone in self.zones),
            *(f"Release   {uri}" for uri in self.releases),
            *(["History   the record of its earlier starts"] if self.forgets_starts else []),
            *(f"Stays     {uri}: an older release, which --older-releases takes too" for uri in self.stays),
            *(f"Stays     {uri}: something else serves from it" for uri in self.in_use),
            *(f"Not seen  {namespace}: its Deployments may not be listed" for namespace in self.unseen),
        ]


def plan_retirement(
    *,
    name: str,
    namespace: str,
    release_root: str,
    cluster: str = "",
    cache_zones: Sequence[str] = (),
    delete_releases: bool = False,
    older_releases: bool = False,
    releases: Sequence[str] = (),
    despite_unseen: bool = False,
    cache_wait_minutes: float = 0.0,
    remembered: Sequence[str] = (),
) -> RetirementPlan:
    """Find what goes with an endpoint, and refuse where somebody else still uses it.

    Args:
        name: Name of the endpoint.
        namespace: Its namespace.
        release_root: Root of the releases; its bucket is the one whose caches are meant.
        cluster: As in `streamway.cluster.connect`.
        cache_zones: Zones whose caches are to be disabled; `cluster` for all of the cluster.
        delete_releases: Whether the releases that the endpoint serves from are to be deleted, and with them the record
            of its earlier starts.
        older_releases: Whether every other release of the models that it served is to be deleted too, where nothing
            else serves from it.
        releases: More releases to delete, such as those of an endpoint that is gone already.
        despite_unseen: Whether to go on although some namespaces cannot be looked into.
        cache_wait_minutes: What `retire_cache` will be told, to be judged now.
        remembered: Releases that reports remember of this endpoint, the newest first. They say which models it served,
            and the newest one stands for what an endpoint that is gone already served last.

    Raises:
        InUseError: another endpoint serves from a release that would be deleted, or from the bucket whose caches
            would be disabled.
        ClusterPermissionError: whether one does cannot be known, because namespaces may not be looked into.
        CacheError: a zone is none, or none that the bucket could be cached in.
        SettingsError: a name is none, a release is not under the root, caches are asked for where there is no bucket,
            or older releases are asked for and the newest one is not.
    """
    _check_names(name, namespace, release_root)
    _check_asked(release_root, cache_zones, releases, delete_releases=delete_releases, older_releases=older_releases)
    cache.check_wait_minutes(cache_wait_minutes)
    zones = tuple(dict.fromkeys(resolve_zones(cache_zones, cluster)))
    if zones:
        cache.check_zones(bucket=storage.bucket_of(release_root), zones=zones)
    shared = bool(cache_zones or delete_releases or releases)
    # Without caches and releases nothing is shared, and rights in one namespace are enough.
    survey = (
        _survey(cluster, namespace, release_root, despite_unseen=despite_unseen)
        if shared
        else Survey(serving=list_serving(cluster, namespace=namespace))
    )
    own = [entry for entry in survey.serving if (entry.namespace, entry.name) == (namespace, name)]
    others = [entry for entry in survey.serving if entry not in own]
    doomed = {uri.rstrip("/") for uri in releases}
    rest: set[str] = set()
    if delete_releases:
        before = _existing(remembered, release_root)
        doomed |= _served(own, release_root) or set(before[:1])
        rest = _releases_of(_models({*doomed, *before}, release_root)) - doomed
    in_use = rest & {entry.release_uri.rstrip("/") for entry in others}
    older = rest - in_use
    if older_releases:
        doomed |= older
    bucket = storage.bucket_of(release_root) if cache_zones else ""
    _refuse_shared(doomed, bucket, others)
    return RetirementPlan(
        name=name,
        namespace=namespace,
        deployments=tuple(sorted(entry.deployment for entry in own)),
        releases=tuple(sorted(doomed)),
        bucket=bucket,
        zones=zones,
        forgets_starts=delete_releases,
        stays=() if older_releases else tuple(sorted(older)),
        in_use=tuple(sorted(in_use)),
        unseen=survey.unseen,
    )


def retire_cache(
    *,
    release_root: str,
    zones: Sequence[str],
    namespace: str,
    cluster: str = "",
    despite_unseen: bool = False,
    wait_minutes: float = 0.0,
) -> cache.CacheResult:
    """Disable the caches of a bucket, unless something serves from it; wait until they are gone, where asked to.

    Args:
        release_root: Root of the releases; its bucket is meant.
        zones: Zones of the caches; none means that there is nothing to do.
        namespace: Namespace of the endpoint that is retired.
        cluster: As in `streamway.cluster.connect`.
        despite_unseen: As in `plan_retirement`.
        wait_minutes: Longest wait until Cloud Storage has removed them, which takes about an hour; 0 for none.

    Raises:
        InUseError: something serves from the bucket.
        ClusterPermissionError: as in `plan_retirement`.
        CacheError: they are not gone in time, or somebody has enabled one again; the others are disabled all the same.
        SettingsError: that is no time to wait.
    """
    cache.check_wait_minutes(wait_minutes)
    bucket = storage.bucket_of(release_root) if zones else ""
    if zones:
        survey = _survey(cluster, namespace, release_root, despite_unseen=despite_unseen)
        _refuse_shared(set(), bucket, survey.serving)
    disabled = cache.disable_cache(bucket=bucket, zones=zones)
    return _await_gone(disabled, 60 * wait_minutes) if zones and wait_minutes else disabled


def retire_releases(
    *,
    release_root: str,
    releases: Sequence[str],
    namespace: str,
    cluster: str = "",
    despite_unseen: bool = False,
) -> int:
    """Delete releases with everything beside them; return how many files there were.

    The manifest goes first, so that from then on there is no release.

    Raises:
        InUseError: something serves from one of them.
        ClusterPermissionError: as in `plan_retirement`.
        SettingsError: one is not under the root.
    """
    if not releases:
        return 0
    for uri in releases:
        _check_is_below(uri, release_root)
    survey = _survey(cluster, namespace, release_root, despite_unseen=despite_unseen)
    _refuse_shared({uri.rstrip("/") for uri in releases}, "", survey.serving)
    return sum(_delete_release(uri.rstrip("/")) for uri in releases)


def _check_names(name: str, namespace: str, release_root: str) -> None:
    ModelLayout(release_root, "any/model", _ANY_COMMIT)
    for kind, value, noun, next_step in (
        ("name", name, "an endpoint", "`streamway status` shows what is served."),
        ("namespace", namespace, "a namespace", "Name the one where the endpoint is."),
    ):
        if not _NAME.fullmatch(value):
            raise SettingsError(f"{kind} is {value!r}, expected the name of {noun}.", next_step=next_step)


def _check_asked(
    release_root: str,
    cache_zones: Sequence[str],
    releases: Sequence[str],
    *,
    delete_releases: bool,
    older_releases: bool,
) -> None:
    if cache_zones and not storage.is_gs(release_root):
        raise SettingsError(
            f"cache_zones names {', '.join(cache_zones)}, but {release_root} is a folder and only buckets are cached.",
            next_step="Leave the zones out.",
        )
    if older_releases and not delete_releases:
        raise SettingsError(
            "older_releases is yes and delete_releases is no, so older releases would go and the newest would stay.",
            next_step="Say yes to both (--releases --older-releases), or to neither.",
        )
    for uri in releases:
        if not isinstance(uri, str):
            raise SettingsError(f"releases has {uri!r}, expected texts.", next_step="Put it in quotes.")
        _check_is_below(uri, release_root)


def _survey(cluster: str, namespace: str, release_root: str, *, despite_unseen: bool) -> Survey:
    survey = survey_serving(cluster, namespace=namespace)
    if survey.unseen:
        named = ", ".join(survey.unseen[:_MOST_NAMED])
        more = f" and {len(survey.unseen) - _MOST_NAMED} more" if len(survey.unseen) > _MOST_NAMED else ""
        if not despite_unseen:
            raise ClusterPermissionError(
                f"Whether something else serves from {release_root} cannot be known: Deployments may not be listed in "
                f"{named}{more}.",
                next_step="Grant list on deployments in every namespace, or say despite_unseen (--despite-unseen) if "
                "you know that nothing there serves from it.",
            )
        log.warning("Deployments in %s%s could not be looked at, and are taken to serve from elsewhere", named, more)
    return survey


def _served(own: Iterable[Serving], release_root: str) -> set[str]:
    return {entry.release_uri.rstrip("/") for entry in own if _is_release(entry.release_uri, release_root)}


def _existing(remembered: Iterable[str], release_root: str) -> list[str]:
    """Return the remembered releases that are there, in their order; what is no release is not believed."""
    known = [uri.rstrip("/") for uri in remembered if _is_release(uri, release_root)]
    return [uri for uri in dict.fromkeys(known) if storage.exists(manifest_uri_of(uri))]


def _models(releases: Iterable[str], release_root: str) -> set[str]:
    """Return the folders of the models that releases are of."""
    return {uri.rpartition("/")[0] for uri in releases if _is_release(uri, release_root)}


def _releases_of(folders: Iterable[str]) -> set[str]:
    """Return every published release of some models."""
    found = set()
    for folder in folders:
        manifests = (_MANIFEST.fullmatch(file.path) for file in storage.list_files(folder))
        found |= {f"{folder}/{manifest['sha']}" for manifest in manifests if manifest}
    return found


def _await_gone(disabled: cache.CacheResult, timeout_seconds: float) -> cache.CacheResult:
    """Wait until Cloud Storage lists none of these caches any more."""
    wanted = {zone.zone for zone in disabled.zones}
    deadline, pause = time.monotonic() + timeout_seconds, _FIRST_PAUSE_SECONDS
    while left := [entry for entry in cache.list_caches(disabled.bucket) if entry.zone in wanted]:
        states = ", ".join(f"{entry.zone} {entry.state}" for entry in left)
        again = [entry.zone for entry in left if entry.state != "disabled"]
        if again:
            raise CacheError(
                f"The caches of gs://{disabled.bucket} were disabled and are not any more: {states}.",
                next_step="Find who enables them, such as a schedule of an endpoint in this bucket, then retire again.",
            )
        if time.monotonic() + pause > deadline:
            raise CacheError(
                f"The caches of gs://{disabled.bucket} are not gone after {timeout_seconds / 60:g} min: {states}.",
                next_step="Nothing is left to do: Cloud Storage removes them within about an hour. Wait longer with "
                "cache_wait_minutes if the bucket itself is to go.",
            )
        log.info("Waiting for Cloud Storage to remove the caches of gs://%s: %s.", disabled.bucket, states)
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
    gone = tuple(replace(zone, state="absent", action="removed") for zone in disabled.zones)
    return replace(disabled, zones=gone, note=f"The caches of gs://{disabled.bucket} are gone.")


def _delete_release(release_uri: str) -> int:
    folder, _, sha = release_uri.rpartition("/")
    deleted = storage.delete_files([f"{release_uri}{MANIFEST_SUFFIX}"])
    beside = [file.uri for file in storage.list_files(folder) if file.path.startswith(f"{sha}.")]
    inside = [file.uri for file in storage.list_files(release_uri)]
    deleted += storage.delete_files([*beside, *inside])
    log.info("%s is deleted: %d files", release_uri, deleted)
    return deleted


def _refuse_shared(doomed: set[str], bucket: str, serving: Sequence[Serving]) -> None:
    in_use = [entry for entry in serving if entry.release_uri.rstrip("/") in doomed]
    if in_use:
        raise InUseError(
            f"{in_use[0].release_uri} cannot be deleted: {', '.join(map(str, in_use))} serves from it.",
            next_step="Retire or redeploy what serves from it first.",
        )
    cached = [entry for entry in serving if bucket and entry.release_uri.startswith(f"gs://{bucket}/")]
    if cached:
        raise InUseError(
            f"The caches of gs://{bucket} cannot be disabled: {', '.join(map(str, cached))} streams from that bucket.",
            next_step="Leave cache_zones empty, or retire what streams from it first.",
        )


def _is_below(uri: str, root: str) -> bool:
    return uri.startswith(f"{root.rstrip('/')}/") and ".." not in uri.split("/")


def _is_release(uri: str, root: str) -> bool:
    path = uri.rstrip("/").removeprefix(f"{root.rstrip('/')}/")
    return _is_below(uri, root) and _RELEASE_PATH.fullmatch(path) is not None


def _check_is_below(uri: str, root: str) -> None:
    if not _is_release(uri, root):
        raise SettingsError(
            f"{uri} is not a release under {root}; expected {root.rstrip('/')}/ORG/NAME/COMMIT.",
            next_step="Name releases as `streamway status` shows them.",
        )
