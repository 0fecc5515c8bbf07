"""Retirement: the Anywhere Caches of a bucket that nothing streams from any more."""

from typing import NamedTuple

from kfp import dsl

from streamway.components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def retire_cache(
    release_root: str,
    run_uri: str,
    cluster: str = "",
    namespace: str = "models",
    zones: list = [],  # noqa: B006
    despite_unseen: bool = False,
    wait_minutes: float = 0.0,
) -> NamedTuple("Outputs", [("states", dict)]):
    """Disable the cache of each zone, unless something in the cluster still streams from the bucket.

    It takes Cloud Storage about an hour until they are gone; enabling them again takes it back. What is waited for and
    does not come in time fails the step, and nothing is left undone by it.

    Args:
        release_root: Root of the releases; its bucket is the one that is meant.
        run_uri: Where this run keeps its journal.
        cluster: As in deploy_server.
        namespace: Kubernetes namespace of the endpoint that is retired.
        zones: Zones; empty for none.
        despite_unseen: Whether to go on although Deployments of some namespaces may not be listed.
        wait_minutes: Longest wait until the caches are gone, in minutes; 0 waits for nothing.

    Returns:
        states: The state of the cache in each zone.
    """
    from streamway import report, retirement

    with report.step("retire_cache", run_uri) as step:
        disabled = retirement.retire_cache(
            release_root=release_root,
            zones=zones,
            namespace=namespace,
            cluster=cluster,
            despite_unseen=despite_unseen,
            wait_minutes=wait_minutes,
        )
        step.keep(disabled)
    return ({zone.zone: zone.state for zone in disabled.zones},)
