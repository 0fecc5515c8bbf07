"""Server-side apply with one field manager: what we own we keep, what others own we name and leave alone."""

import logging
from dataclasses import dataclass

from streamway.cluster import ClusterConnection, Manifest
from streamway.errors import ApiServerError, ApplyConflictError, ClusterError, ClusterPermissionError
from streamway.server.manifests import FIELD_MANAGER, INSTANCE, MANAGED_BY

logger = logging.getLogger("streamway.server")

# Scaling is done under a name of its own: the full manifest names the replicas too, and applying a part of it under
# the same name would withdraw the rest.
SCALE_MANAGER = "streamway-scale"

_PLURALS = {
    "ConfigMap": "configmaps",
    "CronJob": "cronjobs",
    "Deployment": "deployments",
    "Event": "events",
    "HorizontalPodAutoscaler": "horizontalpodautoscalers",
    "Lease": "leases",
    "Namespace": "namespaces",
    "Pod": "pods",
    "PodDisruptionBudget": "poddisruptionbudgets",
    "ReplicaSet": "replicasets",
    "Role": "roles",
    "RoleBinding": "rolebindings",
    "Service": "services",
    "ServiceAccount": "serviceaccounts",
}
# What may have been there before us and is used as it is.
_SHARED = frozenset({"Namespace", "ServiceAccount"})


@dataclass(frozen=True, kw_only=True)
class Applied:
    """One object after it was applied.

    Args:
        kind: Its kind.
        name: Its name.
        action: `created`, `changed`, `unchanged`, or `left` for an object of someone else that is used as it is.
        manifest: The object as it now stands.
    """

    kind: str
    name: str
    action: str
    manifest: Manifest


def collection_path(api_version: str, kind: str, namespace: str = "") -> str:
    """Path of a kind's objects in a namespace, or in all of them."""
    base = "/api/v1" if api_version == "v1" else f"/apis/{api_version}"
    scope = f"/namespaces/{namespace}" if namespace else ""
    return f"{base}{scope}/{_PLURALS[kind]}"


def object_path(manifest: Manifest) -> str:
    """Path of the object that a manifest describes."""
    metadata = manifest["metadata"]
    collection = collection_path(manifest["apiVersion"], manifest["kind"], metadata.get("namespace", ""))
    return f"{collection}/{metadata['name']}"


def apply(connection: ClusterConnection, manifest: Manifest, *, force: bool = False, dry_run: bool = False) -> Applied:
    """Bring one object to what its manifest says.

    Args:
        connection: The cluster.
        manifest: The object.
        force: Take fields over from other managers.
        dry_run: Let the API server judge it without keeping it.

    Raises:
        ApplyConflictError: another manager owns a field, or the object is not ours.
        ClusterPermissionError: RBAC or an admission webhook refuses.
        ClusterError: the API server refuses for another reason, with its words.
    """
    kind, name = manifest["kind"], manifest["metadata"]["name"]
    before = _find(connection, manifest)
    if before is not None and not _is_ours(before, manifest):
        if kind in _SHARED:
            _check_alive(before)
            return Applied(kind=kind, name=name, action="left", manifest=before)
        raise _not_ours(before, manifest)
    if before is not None:
        _check_alive(before)
    query = {"fieldManager": FIELD_MANAGER, "force": force} | ({"dryRun": "All"} if dry_run else {})
    after = _patch(connection, manifest, query)
    if before is None:
        action = "created"
    else:
        unchanged = _version(before) == _version(after)
        action = "unchanged" if unchanged else "changed"
    log = logger.debug if action == "unchanged" else logger.info
    log("%s %s %s%s", kind, name, action, " (dry run)" if dry_run else "")
    return Applied(kind=kind, name=name, action=action, manifest=after)


def scale(connection: ClusterConnection, namespace: str, name: str, replicas: int) -> None:
    """Set a Deployment's number of pods, and nothing else of it."""
    manifest = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"replicas": replicas},
    }
    _patch(connection, manifest, {"fieldManager": SCALE_MANAGER, "force": True})
    logger.info("Deployment %s scaled to %d", name, replicas)


def check_scale(deployment: Manifest, replicas: int) -> None:
    """Refuse to undo a number of pods that another manager has set, such as `kubectl scale` or an autoscaler.

    Args:
        deployment: The Deployment as it stands.
        replicas: The number that is wanted instead.

    Raises:
        ApplyConflictError: another manager owns the number; names it.
    """
    found = (deployment.get("spec") or {}).get("replicas", 1)
    for entry in deployment["metadata"].get("managedFields") or ():
        owned = (entry.get("fieldsV1") or {}).get("f:spec") or {}
        manager = entry.get("manager", "?")
        if found != replicas and "f:replicas" in owned and manager not in {FIELD_MANAGER, SCALE_MANAGER}:
            fields = f'.spec.replicas: set to {found} by "{manager}", expected {replicas}'
            raise _conflict(f"Deployment {deployment['metadata']['name']}", fields)


def delete(connection: ClusterConnection, api_version: str, kind: str, namespace: str, name: str) -> None:
    """Delete an object and what hangs on it; an object that is not there is fine."""
    path = f"{collection_path(api_version, kind, namespace)}/{name}"
    try:
        connection.request("DELETE", path, body={"propagationPolicy": "Background"})
    except ApiServerError as error:
        if error.status != 404:
            raise
    else:
        logger.info("%s %s deleted", kind, name)


def _find(connection: ClusterConnection, manifest: Manifest) -> Manifest | None:
    try:
        return connection.find(object_path(manifest))
    except ClusterPermissionError:
        if manifest["kind"] != "Namespace":
            raise
        # Whoever may deploy into one namespace often may not read namespaces; then it is there.
        return {"kind": "Namespace", "metadata": dict(manifest["metadata"], labels={})}


def _patch(connection: ClusterConnection, manifest: Manifest, query: Manifest) -> Manifest:
    # JSON is YAML, and this is the content type that every version with server-side apply takes.
    try:
        return connection.request(
            "PATCH",
            object_path(manifest),
            query=query,
            body=manifest,
            content_type="application/apply-patch+yaml",
        )
    except ApiServerError as error:
        raise _explain(error, manifest) from error


def _explain(error: ApiServerError, manifest: Manifest) -> ClusterError:
    subject = f"{manifest['kind']} {manifest['metadata']['name']}"
    if error.status == 409 and error.causes:
        fields = "; ".join(f"{cause.get('field', '?')}: {cause.get('message', '')}" for cause in error.causes)
        return _conflict(subject, fields)
    if "being terminated" in str(error):
        return _terminating(manifest["metadata"].get("namespace", ""))
    if error.status == 404:
        namespace = manifest["metadata"].get("namespace", "")
        return ClusterError(
            f"{subject} cannot be applied: {error.problem}",
            next_step=f"Check that the namespace {namespace} exists: kubectl get namespace {namespace}.",
        )
    if error.status == 422:
        return ClusterError(
            f"{subject} is refused as invalid: {error.problem}",
            next_step="Correct the setting behind the field that the message names.",
        )
    return error


def _conflict(subject: str, fields: str) -> ApplyConflictError:
    return ApplyConflictError(
        f"{subject} has fields that another manager owns, and they differ from ours: {fields}.",
        next_step="Let that manager give them up, or take them over with `streamway deploy --force`.",
    )


def _is_ours(found: Manifest, manifest: Manifest) -> bool:
    labels = found["metadata"].get("labels") or {}
    if labels.get(MANAGED_BY) != FIELD_MANAGER:
        return False
    wanted = manifest["metadata"].get("labels", {}).get(INSTANCE)
    return wanted is None or labels.get(INSTANCE) == wanted


def _not_ours(found: Manifest, manifest: Manifest) -> ApplyConflictError:
    labels = found["metadata"].get("labels") or {}
    managers = sorted({entry.get("manager", "?") for entry in found["metadata"].get("managedFields") or ()})
    owner = labels.get(MANAGED_BY) or ", ".join(managers) or "someone else"
    if labels.get(MANAGED_BY) == FIELD_MANAGER:
        owner = f"the endpoint {labels.get(INSTANCE, '?')}"
    kind, metadata = manifest["kind"], manifest["metadata"]
    return ApplyConflictError(
        f"{kind} {metadata['name']} in namespace {metadata.get('namespace', '')} exists already and belongs to "
        f"{owner}; it has no label {MANAGED_BY}={FIELD_MANAGER} of this endpoint.",
        next_step="Choose another name or namespace for the endpoint, or delete that object.",
    )


def _check_alive(found: Manifest) -> None:
    if found["kind"] == "Namespace" and found["metadata"].get("deletionTimestamp"):
        raise _terminating(found["metadata"]["name"])


def _terminating(namespace: str) -> ClusterError:
    return ClusterError(
        f"The namespace {namespace} is being deleted; nothing can be created in it.",
        next_step="Wait until it is gone (kubectl get namespace shows it no more) and run again, or choose another.",
    )


def _version(manifest: Manifest) -> str:
    return str(manifest["metadata"].get("resourceVersion"))
