"""retire_model: an endpoint goes, and with it what only it used."""

from kfp import dsl

from streamway.components import plan_retirement, report_run, retire_cache, retire_releases, retire_server
from streamway.pipelines.workers import asker, judge


@dsl.pipeline(
    name="retire-model",
    display_name="Retire a model",
    description="Takes an endpoint away, with its caches and releases where nothing else uses them.",
)
def retire_model(
    name: str,
    release_root: str,
    cluster: str = "",
    namespace: str = "models",
    cache_zones: list = [],  # noqa: B006
    cache_wait_minutes: float = 0.0,
    delete_releases: bool = False,
    older_releases: bool = False,
    releases: list = [],  # noqa: B006
    despite_unseen: bool = False,
):
    """Take an endpoint away, and nothing from under another one.

    1. Plan: refuse before anything is touched, where something else serves from what would go.
    2. Retire the server: the endpoint with all its revisions.
    3. Retire the releases: delete them, their manifests first, and what is remembered of the endpoint's starts.
    4. Retire the caches: disable the Anywhere Cache of each zone, and wait until they are gone where asked to.

    Whatever happens, the exit handler writes the run's report.

    Args:
        name: Name of the endpoint.
        release_root: Root of its releases, as gs://BUCKET/PREFIX; nothing outside it is ever deleted.
        cluster: projects/P/locations/L/clusters/C; empty for the current kubeconfig or the cluster this runs in.
        namespace: Kubernetes namespace of the endpoint.
        cache_zones: Zones whose caches of the bucket are to be disabled, or `cluster`; empty for none.
        cache_wait_minutes: Longest wait until disabled caches are gone, which takes about an hour; 0 waits for nothing.
        delete_releases: Whether the releases that the endpoint serves from are to be deleted, and with them the record
            of its earlier starts.
        older_releases: Whether every other release of the models that it served goes too, where nothing in the cluster
            serves from it.
        releases: More releases to delete, as URIs, such as those of an endpoint that is gone already.
        despite_unseen: Whether to go on although some namespaces of the cluster cannot be looked into.
    """
    run_uri = f"{release_root}/.runs/{dsl.PIPELINE_JOB_NAME_PLACEHOLDER}"
    finish = asker(report_run(run_uri=run_uri), "Report")

    with dsl.ExitHandler(finish, name="retirement"):
        planned = plan_retirement(
            name=name,
            release_root=release_root,
            run_uri=run_uri,
            cluster=cluster,
            namespace=namespace,
            cache_zones=cache_zones,
            delete_releases=delete_releases,
            older_releases=older_releases,
            releases=releases,
            despite_unseen=despite_unseen,
            cache_wait_minutes=cache_wait_minutes,
        )
        asker(planned, "1 Plan")

        served = retire_server(name=name, run_uri=run_uri, cluster=cluster, namespace=namespace)
        asker(served.after(planned), "2 Server")

        stored = retire_releases(
            release_root=release_root,
            run_uri=run_uri,
            cluster=cluster,
            releases=planned.outputs["releases"],
            name=name,
            namespace=namespace,
            forget_starts=delete_releases,
            despite_unseen=despite_unseen,
        )
        asker(stored.after(served), "3 Releases")

        # Last, because it may wait for an hour, and nothing that is still to be done should.
        cached = retire_cache(
            release_root=release_root,
            run_uri=run_uri,
            cluster=cluster,
            namespace=namespace,
            zones=planned.outputs["cache_zones"],
            despite_unseen=despite_unseen,
            wait_minutes=cache_wait_minutes,
        )
        # Tried once: a wait that was too short must not be waited out twice.
        judge(cached.after(stored), "4 Caches")
