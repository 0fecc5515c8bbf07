"""Where a cluster's nodes are: a cache serves its own zone only, so pods stay in one, or every zone has a cache."""

from collections.abc import Sequence

from streamway.cluster.access import connect, find_gke_cluster, is_gke_name
from streamway.errors import ClusterPermissionError, SettingsError

EVERY_ZONE = "cluster"
"""In the place of a zone's name: every zone of the cluster's nodes."""
_LABEL = "topology.kubernetes.io/zone"
_GKE_SECONDS = 30.0


def resolve_zones(zones: Sequence[str], cluster: str = "") -> tuple[str, ...]:
    """Put a cluster's own zones in the place of the word `cluster`; zones that are named stay as they are.

    Args:
        zones: Names of zones, and `cluster`.
        cluster: As in `connect`.

    Raises:
        SettingsError: the cluster's nodes name no zone.
        ClusterPermissionError: its nodes may not be listed.
        ClusterUnreachableError: it does not answer.
    """
    if EVERY_ZONE not in zones:
        return tuple(zones)
    found = _zones_of(cluster)
    if not found:
        raise SettingsError(
            "The cluster's nodes name no zone, so it is not known where to cache.",
            next_step=f"Name the zones in cache.zones; `kubectl get nodes -L {_LABEL}` shows what nodes say.",
        )
    return tuple(dict.fromkeys([*(zone for zone in zones if zone != EVERY_ZONE), *found]))


def _zones_of(cluster: str) -> list[str]:
    if is_gke_name(cluster):
        # What GKE says holds for pools too that have no node at the moment.
        described, _credentials = find_gke_cluster(cluster, _GKE_SECONDS)
        return sorted(described.locations)
    try:
        nodes = connect(cluster).get("/api/v1/nodes").get("items") or ()
    except ClusterPermissionError as error:
        raise ClusterPermissionError(
            f"Which zones the cluster has is not known: {error.problem}",
            next_step="Name the zones in cache.zones, or let this account list nodes.",
        ) from error
    return sorted({zone for node in nodes if (zone := (node["metadata"].get("labels") or {}).get(_LABEL))})
