"""Retirement: the endpoint goes, with all its revisions."""

from typing import NamedTuple

from kfp import dsl

from streamway.components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def retire_server(
    name: str,
    run_uri: str,
    cluster: str = "",
    namespace: str = "models",
) -> NamedTuple("Outputs", [("deleted", list)]):
    """Delete the endpoint and wait until its pods are gone; what is not there is well.

    Args:
        name: Name of the endpoint.
        run_uri: Where this run keeps its journal.
        cluster: As in deploy_server.
        namespace: Kubernetes namespace of the endpoint.

    Returns:
        deleted: What was deleted, as `Kind name`.
    """
    from streamway import report, server

    with report.step("retire_server", run_uri) as step:
        deleted = server.retire_server(name=name, namespace=namespace, cluster=cluster)
        step.keep({"deleted": deleted})
    return (list(deleted),)
