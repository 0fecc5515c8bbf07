"""Telling a revision's pods which warm-start kit to restore: one small ConfigMap, read when a pod starts.

Kits only save time, so an account without rights on ConfigMaps goes without them and is told so; nothing fails.
"""

import logging
from collections.abc import Collection

from streamway.cluster import RELEASE, REVISION, ClusterConnection, Manifest
from streamway.errors import ClusterError, ClusterPermissionError
from streamway.server.apply import apply, collection_path, delete
from streamway.server.kit import FindKit, Kit, is_warm, kit_key, restored_kit
from streamway.server.manifests import FIELD_MANAGER, INSTANCE, MANAGED_BY, kit_name
from streamway.server.spec import ServerSpec, derive

logger = logging.getLogger("streamway.server")


def offer_found_kit(
    connection: ClusterConnection, spec: ServerSpec, find_kit: FindKit, *, revision: str, known: Collection[str] = ()
) -> Kit | None:
    """Look for the kit of a server that is about to be made, and offer it to the pods to come.

    Args:
        connection: The cluster.
        spec: The server.
        find_kit: Finds the kit of a key.
        revision: The revision that is about to be made.
        known: Revisions that exist; offers to others are left from interrupted runs and removed.

    Returns:
        The kit that was offered; None where there is none.
    """
    derived = derive(spec)
    if not is_warm(spec, derived):
        return None
    withdraw_kits(connection, spec.namespace, spec.name, keep={*known, revision})
    key = kit_key(spec, derived)
    kit = find_kit(key)
    if kit is None:
        logger.info("there is no warm-start kit %s for this release yet; the engine prepares everything itself", key)
        return None
    logger.info("warm-start kit %s (%.1f MiB) will be restored before the engine starts", key, kit.size_bytes / 2**20)
    offered = offer_kit(connection, kit, namespace=spec.namespace, endpoint=spec.name, revision=revision)
    return kit if offered else None


def offer_kit(
    connection: ClusterConnection,
    kit: Kit,
    *,
    namespace: str,
    endpoint: str,
    revision: str,
    deployment: Manifest | None = None,
) -> bool:
    """Let every later pod of a revision restore a kit; True where it may.

    Args:
        connection: The cluster.
        kit: The kit.
        namespace: Of the endpoint.
        endpoint: Its name.
        revision: The revision.
        deployment: Its Deployment, which the offer then disappears with.
    """
    manifest = offer_manifest(kit, namespace=namespace, endpoint=endpoint, revision=revision, deployment=deployment)
    try:
        apply(connection, manifest)
    except ClusterError as error:
        logger.warning("no warm-start kit can be offered to revision %s: %s", revision, error.problem)
        return False
    return True


def offer_manifest(
    kit: Kit, *, namespace: str, endpoint: str, revision: str, deployment: Manifest | None = None
) -> Manifest:
    """The ConfigMap of an offer."""
    metadata: Manifest = {
        "name": kit_name(endpoint, revision),
        "namespace": namespace,
        "labels": {INSTANCE: endpoint, MANAGED_BY: FIELD_MANAGER, REVISION: revision},
    }
    if deployment is not None:
        metadata["labels"][RELEASE] = deployment["metadata"]["labels"][RELEASE]
        metadata["ownerReferences"] = [
            {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "name": deployment["metadata"]["name"],
                "uid": deployment["metadata"]["uid"],
            }
        ]
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "data": {"uri": kit.uri, "sha256": kit.sha256, "size_bytes": str(kit.size_bytes)},
    }


def take_back_kit(connection: ClusterConnection, namespace: str, endpoint: str, revision: str) -> Kit | None:
    """Withdraw the kit that a revision's pods have restored, so that its next ones start without; None for none."""
    query = {"labelSelector": f"{INSTANCE}={endpoint},{REVISION}={revision}"}
    pods = connection.get(collection_path("v1", "Pod", namespace), query).get("items") or ()
    restored = {digest for pod in pods if (digest := restored_kit(pod))}
    if not restored:
        return None
    path = f"{collection_path('v1', 'ConfigMap', namespace)}/{kit_name(endpoint, revision)}"
    try:
        data = (connection.find(path) or {}).get("data") or {}
    except ClusterPermissionError as error:
        logger.warning("the kit of revision %s cannot be taken back: %s", revision, error.problem)
        return None
    if data.get("sha256") not in restored:
        return None
    withdraw_kit(connection, namespace, endpoint, revision)
    return Kit(uri=data["uri"], sha256=data["sha256"], size_bytes=int(data["size_bytes"]))


def withdraw_kits(connection: ClusterConnection, namespace: str, endpoint: str, *, keep: Collection[str] = ()) -> None:
    """Remove the offers of an endpoint to any revision but those to `keep`."""
    query = {"labelSelector": f"{INSTANCE}={endpoint},{MANAGED_BY}={FIELD_MANAGER}"}
    try:
        found = connection.get(collection_path("v1", "ConfigMap", namespace), query).get("items") or ()
    except ClusterPermissionError as error:
        logger.debug("offers of kits cannot be listed: %s", error.problem)
        return
    for offer in found:
        revision = str(offer["metadata"]["labels"].get(REVISION, ""))
        if revision and revision not in keep:
            withdraw_kit(connection, namespace, endpoint, revision)


def withdraw_kit(connection: ClusterConnection, namespace: str, endpoint: str, revision: str) -> None:
    """Remove an offer; one that is not there is fine, and so is an account that never could make one."""
    try:
        delete(connection, "v1", "ConfigMap", namespace, kit_name(endpoint, revision))
    except ClusterPermissionError as error:
        logger.debug("the offer of a kit stays: %s", error.problem)
