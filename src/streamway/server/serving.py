"""What in a cluster reads from where, so that nothing is taken away under a server that may start again any minute."""

from dataclasses import dataclass

from streamway.cluster import RELEASE_URI, ClusterConnection, connect
from streamway.errors import ClusterPermissionError
from streamway.server.manifests import FIELD_MANAGER, INSTANCE, MANAGED_BY

EVERY_OTHER = "every other namespace"
"""What cannot be seen, where not even the names of namespaces may be read."""

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


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What serves in a cluster, as far as it may be seen.

    Args:
        serving: Every Deployment of ours that may be listed.
        unseen: Namespaces whose Deployments may not be.
    """

    serving: tuple[Serving, ...]
    unseen: tuple[str, ...] = ()


def list_serving(cluster: str = "", *, namespace: str = "") -> tuple[Serving, ...]:
    """List every Deployment of ours in a cluster, scaled to zero or not.

    Args:
        cluster: As in `streamway.cluster.connect`.
        namespace: Only this one; empty for all of them.

    Raises:
        ClusterError: the cluster refuses; Deployments must be readable in every namespace that is
            meant, or the answer would be worth nothing.
    """
    return _list(connect(cluster), namespace)


def survey_serving(cluster: str = "", *, namespace: str) -> Survey:
    """List every Deployment of ours in every namespace that may be looked into, and name the others.

    Args:
        cluster: As in `streamway.cluster.connect`.
        namespace: The one that must be seen.

    Raises:
        ClusterError: the cluster does not answer, or refuses even this namespace.
    """
    connection = connect(cluster)
    try:
        return Survey(serving=_list(connection, ""))
    except ClusterPermissionError:
        names, unseen = _namespaces(connection, besides=namespace)
    found = list(_list(connection, namespace))
    for name in names:
        try:
            found += _list(connection, name)
        except ClusterPermissionError:
            unseen.append(name)
    return Survey(serving=tuple(found), unseen=tuple(unseen))


def _namespaces(connection: ClusterConnection, *, besides: str) -> tuple[list[str], list[str]]:
    """Return the names of the other namespaces, and what cannot be seen for want of them."""
    try:
        listed = connection.get("/api/v1/namespaces")
    except ClusterPermissionError:
        return [], [EVERY_OTHER]
    names = [str(item["metadata"]["name"]) for item in listed.get("items") or ()]
    return [name for name in names if name != besides], []


def _list(connection: ClusterConnection, namespace: str) -> tuple[Serving, ...]:
    query = {"labelSelector": f"{MANAGED_BY}={FIELD_MANAGER}"}
    place = f"namespaces/{namespace}/" if namespace else ""
    found = connection.get(_DEPLOYMENTS.format(place=place), query)
    return tuple(
        Serving(
            namespace=item["metadata"]["namespace"],
            name=(item["metadata"].get("labels") or {}).get(INSTANCE, ""),
            deployment=item["metadata"]["name"],
            release_uri=(item["metadata"].get("annotations") or {}).get(RELEASE_URI, ""),
        )
        for item in found.get("items") or ()
    )
