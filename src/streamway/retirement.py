"""Taking an endpoint away, and with it what only it used: decided before the first thing is touched.

Serving (server), caching (cache) and storing (storage) are rooms that do not know each other; this is where one
decides about the others. Nothing is taken away from under a server, because one that loses its node an hour later
would come back and find no weights.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass

from streamway import cache, storage
from streamway.cluster import resolve_zones
from streamway.errors import InUseError, SettingsError
from streamway.server.serving import Serving, list_serving
from streamway.storage.layout import MANIFEST_SUFFIX

log = logging.getLogger("streamway.retirement")

_RELEASE_PATH = re.compile(r"([A-Za-z0-9][\w.-]*/){1,2}[0-9a-f]{40}")


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
    """

    name: str
    namespace: str
    deployments: tuple[str, ...]
    releases: tuple[str, ...]
    bucket: str
    zones: tuple[str, ...]
    forgets_starts: bool = False

    def lines(self) -> list[str]:
        """Say it to a person."""
        found = [f"Endpoint  {self.namespace}/{self.name}: {', '.join(self.deployments) or 'nothing is there'}"]
        found += [f"Cache     gs://{self.bucket} in {zone}" for zone in self.zones]
        found += [f"Release   {uri}" for uri in self.releases]
        return found + (["History   the record of its earlier starts"] if self.forgets_starts else [])


def plan_retirement(
    *,
    name: str,
    namespace: str,
    release_root: str,
    cluster: str = "",
    cache_zones: Sequence[str] = (),
    delete_releases: bool = False,
    releases: Sequence[str] = (),
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
        releases: More releases to delete, such as those of an endpoint that is gone already.

    Raises:
        InUseError: another endpoint serves from a release that would be deleted, or from the bucket whose caches
            would be disabled.
        SettingsError: a release is not under the root, or caches are asked for where there is no bucket.
    """
    if cache_zones and not storage.is_gs(release_root):
        raise SettingsError(
            f"cache_zones names {', '.join(cache_zones)}, but {release_root} is a folder and only buckets are cached.",
            next_step="Leave the zones out.",
        )
    for uri in releases:
        _check_is_below(uri, release_root)
    # Without caches and releases nothing is shared, and rights in one namespace are enough.
    shared = bool(cache_zones or delete_releases or releases)
    serving = list_serving(cluster, namespace="" if shared else namespace)
    own = [entry for entry in serving if (entry.namespace, entry.name) == (namespace, name)]
    others = [entry for entry in serving if entry not in own]
    doomed = {uri.rstrip("/") for uri in releases}
    if delete_releases:
        doomed |= {entry.release_uri.rstrip("/") for entry in own if _is_below(entry.release_uri, release_root)}
    bucket = storage.bucket_of(release_root) if cache_zones else ""
    _refuse_shared(doomed, bucket, others)
    return RetirementPlan(
        name=name,
        namespace=namespace,
        deployments=tuple(sorted(entry.deployment for entry in own)),
        releases=tuple(sorted(doomed)),
        bucket=bucket,
        zones=tuple(dict.fromkeys(resolve_zones(cache_zones, cluster))),
        forgets_starts=delete_releases,
    )


def retire_cache(*, release_root: str, zones: Sequence[str], cluster: str = "") -> cache.CacheResult:
    """Disable the caches of a bucket, unless something serves from it.

    Raises:
        InUseError: something does.
    """
    bucket = storage.bucket_of(release_root) if zones else ""
    if zones:
        _refuse_shared(set(), bucket, list_serving(cluster))
    return cache.disable_cache(bucket=bucket, zones=zones)


def retire_releases(*, release_root: str, releases: Sequence[str], cluster: str = "") -> int:
    """Delete releases with everything beside them; return how many files there were.

    The manifest goes first, so that from then on there is no release.

    Raises:
        InUseError: something serves from one of them.
        SettingsError: one is not under the root.
    """
    if not releases:
        return 0
    for uri in releases:
        _check_is_below(uri, release_root)
    _refuse_shared({uri.rstrip("/") for uri in releases}, "", list_serving(cluster))
    return sum(_delete_release(uri.rstrip("/")) for uri in releases)


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


def _check_is_below(uri: str, root: str) -> None:
    path = uri.rstrip("/").removeprefix(f"{root.rstrip('/')}/")
    if not _is_below(uri, root) or not _RELEASE_PATH.fullmatch(path):
        raise SettingsError(
            f"{uri} is not a release under {root}; expected {root}/ORG/NAME/COMMIT.",
            next_step="Name releases as `streamway status` shows them.",
        )
