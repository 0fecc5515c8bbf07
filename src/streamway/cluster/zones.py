"""Where a cluster's nodes are: a cache serves its own zone only, so pods stay in one, or every zone has a cache."""

import logging
import re
from collections.abc import Iterable, Sequence
from typing import Any

from streamway.cluster.access import connect, find_gke_cluster, is_gke_name
from streamway.errors import ClusterPermissionError, SettingsError

logger = logging.getLogger("streamway.cluster")

EVERY_ZONE = "cluster"
"""In the place of a zone's name: every zone of the cluster's nodes."""
_LABEL = "topology.kubernetes.io/zone"
_GKE_SECONDS = 30.0
# Zones of Google Cloud, whose names begin with that of their region.
_ZONE = re.compile(r"([a-z]+-[a-z]+\d+)-[a-z]")
_REGION = re.compile(r"[a-z]+-[a-z]+\d+")


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


def check_zone(zone: str, cluster: str = "") -> None:
    """Refuse a zone in which a cluster can never have a node; one that has none at the moment is another matter.

    GKE says where the pools of a cluster may have nodes, those too that have none now. Of any other cluster only its
    nodes are known, and an autoscaler may add some in further zones, but never in another region.

    Args:
        zone: Where pods shall be; empty for anywhere.
        cluster: As in `connect`.

    Raises:
        SettingsError: the cluster can have no node there; names the zones where it can.
        ClusterUnreachableError: it does not answer.
    """
    if not zone:
        return
    if is_gke_name(cluster):
        described, _credentials = find_gke_cluster(cluster, _GKE_SECONDS)
        _check_described(zone, cluster, described)
        return
    try:
        found = _zones_of(cluster)
    except ClusterPermissionError as error:
        logger.info("whether the cluster has nodes in %s is not known: %s", zone, error.problem)
        return
    if zone in found or not found:
        return
    regions = {match[1] for one in found if (match := _ZONE.fullmatch(one))}
    region = match[1] if (match := _ZONE.fullmatch(zone)) else ""
    # The name of a region is that of no zone, where zones are named as Google names them.
    if regions and (_REGION.fullmatch(zone) or (region and region not in regions)):
        raise _no_node_ever(zone, cluster or "of the kubeconfig", found)
    logger.info("the cluster has no node in %s yet, only in %s; an autoscaler may add one", zone, ", ".join(found))


def _check_described(zone: str, cluster: str, described: Any) -> None:
    """Hold a zone against what GKE says (https://cloud.google.com/kubernetes-engine/docs/reference/rest/v1/
    projects.locations.clusters): a pool may have zones of its own, and Autopilot takes any of its region."""
    provisioning = described.autoscaling
    possible = {*described.locations, *(place for pool in described.node_pools for place in pool.locations)}
    if provisioning.enable_node_autoprovisioning:
        possible |= set(provisioning.autoprovisioning_locations)
    region = match[1] if (match := _ZONE.fullmatch(zone)) else ""
    if zone in possible or (described.autopilot.enabled and region == cluster.split("/")[3]):
        return
    raise _no_node_ever(zone, cluster, sorted(possible))


def _no_node_ever(zone: str, cluster: str, possible: Iterable[str]) -> SettingsError:
    return SettingsError(
        f"zone is {zone!r}, where the cluster {cluster} can have no node; it can have them in {', '.join(possible)}.",
        next_step="Choose one of these, or leave zone empty for any; a node pool gets another zone by "
        "`gcloud container node-pools update --node-locations`.",
    )


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
