"""Retirement, first step: what would be taken away, and whether anybody else still uses it."""

from typing import NamedTuple

from kfp import dsl

from streamway.components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def plan_retirement(
    name: str,
    release_root: str,
    run_uri: str,
    cluster: str = "",
    namespace: str = "models",
    cache_zones: list = [],  # noqa: B006
    delete_releases: bool = False,
    older_releases: bool = False,
    releases: list = [],  # noqa: B006
    despite_unseen: bool = False,
    cache_wait_minutes: float = 0.0,
) -> NamedTuple("Outputs", [("releases", list), ("cache_zones", list)]):
    """Refuse before anything is touched, if something else serves from what would be taken away.

    Args:
        name: Name of the endpoint.
        release_root: Root of the releases.
        run_uri: Where this run keeps its journal.
        cluster: projects/P/locations/L/clusters/C; empty for the current kubeconfig or the cluster this runs in.
        namespace: Kubernetes namespace of the endpoint.
        cache_zones: Zones whose caches of the bucket are to be disabled, or `cluster` for all of the cluster; empty
            for none.
        delete_releases: Whether the releases that the endpoint serves from are to be deleted, and with them the record
            of its earlier starts.
        older_releases: Whether every other release of the models that it served is deleted too, where nothing else
            serves from it.
        releases: More releases to delete, as URIs.
        despite_unseen: Whether to go on although Deployments of some namespaces may not be listed.
        cache_wait_minutes: What retire_cache will be told, to be judged before anything is touched.

    Returns:
        releases: Releases to delete.
        cache_zones: Zones whose caches to disable.
    """
    from streamway import report, retirement

    with report.step("plan_retirement", run_uri) as step:
        plan = retirement.plan_retirement(
            name=name,
            namespace=namespace,
            release_root=release_root,
            cluster=cluster,
            cache_zones=cache_zones,
            delete_releases=delete_releases,
            older_releases=older_releases,
            releases=releases,
            despite_unseen=despite_unseen,
            cache_wait_minutes=cache_wait_minutes,
            remembered=report.served_releases(run_uri, name=name, namespace=namespace),
        )
        step.keep(plan)
    return (list(plan.releases), list(plan.zones))
