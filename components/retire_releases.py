"""Retirement: releases that nothing serves from any more."""

from typing import NamedTuple

from kfp import dsl

from streamway.components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def retire_releases(
    release_root: str,
    run_uri: str,
    cluster: str = "",
    releases: list = [],  # noqa: B006
) -> NamedTuple("Outputs", [("deleted_files", int)]):
    """Delete releases with everything beside them, their manifests first, unless something serves from one of them.

    Args:
        release_root: Root of the releases; nothing outside it is ever deleted.
        run_uri: Where this run keeps its journal.
        cluster: As in deploy_server.
        releases: Releases to delete, as URIs; empty for none.

    Returns:
        deleted_files: How many files were deleted.
    """
    from streamway import report, retirement

    with report.step("retire_releases", run_uri) as step:
        deleted = retirement.retire_releases(release_root=release_root, releases=releases, cluster=cluster)
        step.keep({"deleted_files": deleted, "releases": releases})
    return (deleted,)
