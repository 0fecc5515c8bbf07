"""What in a cluster reads from where, so that nothing is taken away under a server that may start again any minute."""

from dataclasses import dataclass

from streamway.cluster import RELEASE_URI, connect
from streamway.server.manifests import FIELD_MANAGER, INSTANCE, MANAGED_BY

_DEPLOYMENTS = "/apis/apps/v1/{place}deployments"


@dataclass(frozen=True, kw_only=True)
class Serving:
    """One Deployment and what it streams.

    Args:
        namespace: Its namespace.
        name: The endpoint that it belongs to.
        deployment: Its own name.
        release_uri: Where its weights come from.
    """

    namespace: str
    name: str
    deployment: str
    release_uri: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name} ({self.deployment})"


def list_serving(cluster: str = "", *, namespace: str = "") -> tuple[Serving, ...]:
    """List every Deployment of ours in a cluster, scaled to zero or not.

    Args:
        cluster: As in `streamway.cluster.connect`.
        namespace: Only this one; empty for all of them.

    Raises:
        ClusterError: the cluster refuses; Deployments must be readable in every namespace that is
            meant, or the answer would be worth nothing.
    """
    query = {"labelSelector": f"{MANAGED_BY}={FIELD_MANAGER}"}
    place = f"namespaces/{namespace}/" if namespace else ""
    found = connect(cluster).get(_DEPLOYMENTS.format(place=place), query)
    return tuple(
        Serving(
            namespace=item["metadata"]["namespace"],
            name=(item["metadata"].get("labels") or {}).get(INSTANCE, ""),
            deployment=item["metadata"]["name"],
            release_uri=(item["metadata"].get("annotations") or {}).get(RELEASE_URI, ""),
        )
        for item in found.get("items") or ()
    )
