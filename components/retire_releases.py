"""Retirement: releases that nothing serves from any more, and what is remembered of the endpoint."""

from typing import NamedTuple

from kfp import dsl

from streamway.components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def retire_releases(
    release_root: str,
    run_uri: str,
    cluster: str = "",
    releases: list = [],  # noqa: B006
    name: str = "",
    namespace: str = "models",
    forget_starts: bool = False,
    despite_unseen: bool = False,
) -> NamedTuple("Outputs", [("deleted_files", int)]):
    """Delete releases with everything beside them, their manifests first, unless something serves from one of them.

    Args:
        release_root: Root of the releases; nothing outside it is ever deleted.
        run_uri: Where this run keeps its journal.
        cluster: As in deploy_server.
        releases: Releases to delete, as URIs; empty for none.
        name: Name of the endpoint that is retired.
        namespace: Its Kubernetes namespace.
        forget_starts: Whether the record of the endpoint's earlier starts goes too.
        despite_unseen: Whether to go on although Deployments of some namespaces may not be listed.

    Returns:
        deleted_files: How many files were deleted.
    """
    from streamway import report, retirement

    with report.step("retire_releases", run_uri) as step:
        deleted = retirement.retire_releases(
            release_root=release_root,
            releases=releases,
            namespace=namespace,
            cluster=cluster,
            despite_unseen=despite_unseen,
        )
        forgotten = report.forget_starts(run_uri, name=name, namespace=namespace) if forget_starts else 0
        step.keep({"deleted_files": deleted, "releases": releases, "forgotten_starts": forgotten})
    return (deleted,)
