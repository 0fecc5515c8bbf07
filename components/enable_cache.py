"""Step 4: an Anywhere Cache in each zone that serves, so that reads stay in the zone."""

from typing import NamedTuple

from kfp import dsl

from streamway.components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def enable_cache(
    run_uri: str,
    size_bytes: int,
    release: dsl.Input[dsl.Model],
    zones: list = [],  # noqa: B006
    cluster: str = "",
    ttl_hours: float = 24.0,
    ingest_on_write: bool = False,
    wait_minutes: float = 0.0,
) -> NamedTuple("Outputs", [("states", dict)]):
    """Create, update or resume the cache of each zone; a cache that is still being created is not a failure.

    Args:
        run_uri: Where this run keeps its journal.
        size_bytes: Size of the release, in bytes; what each zone costs to hold follows from it.
        release: The published model; its bucket is the one to cache.
        zones: Zones to cache in, such as us-central1-a, or `cluster` for all zones of the cluster; empty for none.
        cluster: As in deploy_server.
        ttl_hours: How long an entry lives, 1 to 168 hours.
        ingest_on_write: Whether uploads fill the caches, instead of first reads; a release that was uploaded before
            its cache was there is filled by its first read either way.
        wait_minutes: Longest wait until every cache serves, in minutes; 0 goes on at once. One that does not serve by
            then is no failure.

    Returns:
        states: The state of the cache in each zone.
    """
    from streamway import cache, report, storage
    from streamway.cluster import resolve_zones

    with report.step("enable_cache", run_uri) as step:
        enabled = cache.enable_cache(
            bucket=storage.bucket_of(release.uri),
            zones=resolve_zones(zones, cluster),
            ttl_seconds=int(ttl_hours * 3600),
            ingest_on_write=ingest_on_write,
            wait="running" if wait_minutes else "none",
            timeout_seconds=wait_minutes * 60 or 600.0,
            size_bytes=int(size_bytes),
        )
        step.keep(enabled)
    return ({zone.zone: zone.state for zone in enabled.zones},)
