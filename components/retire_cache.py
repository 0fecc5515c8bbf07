"""Retirement: the Anywhere Caches of a bucket that nothing streams from any more."""

from typing import NamedTuple

from kfp import dsl

from streamway.components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def retire_cache(
    release_root: str,
    run_uri: str,
    cluster: str = "",
    zones: list = [],  # noqa: B006
) -> NamedTuple("Outputs", [("states", dict)]):
    """Disable the cache of each zone, unless something in the cluster still streams from the bucket.

    It takes Cloud Storage about an hour until they are gone; enabling them again takes it back.

    Args:
        release_root: Root of the releases; its bucket is the one that is meant.
        run_uri: Where this run keeps its journal.
        cluster: As in deploy_server.
        zones: Zones; empty for none.

    Returns:
        states: The state of the cache in each zone.
    """
    from streamway import report, retirement

    with report.step("retire_cache", run_uri) as step:
        disabled = retirement.retire_cache(release_root=release_root, zones=zones, cluster=cluster)
        step.keep(disabled)
    return ({zone.zone: zone.state for zone in disabled.zones},)
