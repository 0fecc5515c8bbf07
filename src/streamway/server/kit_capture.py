"""Taking an engine's cache out of a pod of ours that has passed, and reading how long that pod's start took.

The way is the API server's exec, the only one that needs neither a volume that outlives the pod nor an account with
write access to the bucket inside it. What it needs beside what a deployment needs anyway is one rule in one namespace
(docs/warm-start-role.yaml).
"""

import logging
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from streamway.cluster import REVISION, ClusterConnection, Manifest, run_in_container
from streamway.errors import ClusterError, KitRefusedError
from streamway.server.apply import collection_path
from streamway.server.diagnose import engine_status
from streamway.server.endpoint import Revision, read_endpoint
from streamway.server.kit import CACHE_ROOT, KIT_KEY, KIT_MADE_FOR, MAX_KIT_BYTES, restored_kit
from streamway.server.kit_archive import PackedKit, pack_kit
from streamway.server.manifests import CONTAINER, INSTANCE
from streamway.server.streamer_log import EngineLog, read_log

logger = logging.getLogger("streamway.server")

CAPTURE_SECONDS = 300.0
_LOG_BYTES = 4 * 1024 * 1024
# The shell knows the variable as the engine does, which makes no folder where it keeps nothing; exec replaces the shell
# by tar, so that it does not stay between.
_SEND = f'mkdir -p "${CACHE_ROOT}" && cd "${CACHE_ROOT}" && exec tar -cf - .'


@dataclass(frozen=True, kw_only=True)
class ProvedPod:
    """A ready pod of a revision of ours.

    Args:
        name: Its name.
        namespace: Its namespace.
        kit_key: What a kit of its engine is called.
        made_for: What that stands for, as JSON.
        release_uri: Where its weights come from.
        restored: SHA-256 of the kit that it restored; empty for none.
        ready_seconds: From the engine's start to readiness.
        log: What the engine said about its start.
        deployment: The Deployment that it belongs to.
    """

    name: str
    namespace: str
    kit_key: str
    made_for: str
    release_uri: str
    restored: str
    ready_seconds: float
    log: EngineLog
    deployment: Manifest


def find_proved_pod(connection: ClusterConnection, *, namespace: str, name: str, revision: str) -> ProvedPod | None:
    """Find a ready pod of the revision that the endpoint serves; None where its cache is not kept at all.

    Args:
        connection: The cluster.
        namespace: Of the endpoint.
        name: Of the endpoint.
        revision: The revision, which must have passed.

    Raises:
        KitRefusedError: the endpoint does not serve this revision, or no pod of it is ready and belongs to it.
    """
    endpoint = read_endpoint(connection, namespace, name)
    found = endpoint.revisions.get(revision)
    if found is None or endpoint.active != revision:
        raise KitRefusedError(f"Endpoint {name} does not serve revision {revision}; only what serves gives a kit.")
    annotations = found.deployment["metadata"].get("annotations") or {}
    if KIT_KEY not in annotations:
        return None
    pod = _own_pod(connection, namespace, name, found)
    status = engine_status(pod)
    return ProvedPod(
        name=pod["metadata"]["name"],
        namespace=namespace,
        kit_key=str(annotations[KIT_KEY]),
        made_for=str(annotations.get(KIT_MADE_FOR, "{}")),
        release_uri=found.release_uri,
        restored=restored_kit(pod),
        ready_seconds=_ready_seconds(pod, status),
        log=_read_start(connection, pod),
        deployment=found.deployment,
    )


def capture_kit(
    connection: ClusterConnection, pod: ProvedPod, path: Path, *, max_bytes: int = MAX_KIT_BYTES
) -> PackedKit:
    """Write a pod's engine cache to a file as a kit.

    Args:
        connection: The cluster.
        pod: A pod that has passed.
        path: Where to.
        max_bytes: Most bytes that the kit may have.

    Raises:
        KitRefusedError: the cache is empty, too large, or holds anything but plain files.
        ClusterPermissionError: the account may not exec.
        ClusterError: the cache could not be read.
    """
    command = ["sh", "-c", _SEND]
    pieces = run_in_container(connection, pod.namespace, pod.name, CONTAINER, command, timeout_seconds=CAPTURE_SECONDS)
    packed = pack_kit(pieces, path, max_bytes=max_bytes)
    if not packed.file_count:
        raise KitRefusedError(f"The engine in {pod.name} has left nothing in its cache.")
    return packed


def _own_pod(connection: ClusterConnection, namespace: str, name: str, revision: Revision) -> Manifest:
    """Find a ready pod that the Deployment itself made, not one that only has its labels."""
    query = {"labelSelector": f"{INSTANCE}={name},{REVISION}={revision.name}"}
    sets = connection.get(collection_path("apps/v1", "ReplicaSet", namespace), query).get("items") or ()
    deployment_uid = revision.deployment["metadata"]["uid"]
    own_sets = {one["metadata"]["uid"] for one in sets if _controller(one) == deployment_uid}
    pods = connection.get(collection_path("v1", "Pod", namespace), query).get("items") or ()
    for pod in pods:
        if not pod["metadata"].get("deletionTimestamp") and _controller(pod) in own_sets and _condition(pod, "Ready"):
            return dict(pod)
    raise KitRefusedError(f"No pod of revision {revision.name} is ready, so there is none to take a kit from.")


def _controller(item: Manifest) -> str:
    owners = item["metadata"].get("ownerReferences") or ()
    return next((str(owner["uid"]) for owner in owners if owner.get("controller")), "")


def _condition(pod: Manifest, kind: str) -> dict[str, Any]:
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return next((entry for entry in conditions if entry["type"] == kind and entry["status"] == "True"), {})


def _ready_seconds(pod: Manifest, status: Manifest) -> float:
    """Kubernetes tells whole seconds."""
    began = ((status.get("state") or {}).get("running") or {}).get("startedAt")
    ready = _condition(pod, "Ready").get("lastTransitionTime")
    if not began or not ready:
        return 0.0
    return max(0.0, (datetime.fromisoformat(str(ready)) - datetime.fromisoformat(str(began))).total_seconds())


def _read_start(connection: ClusterConnection, pod: Manifest) -> EngineLog:
    path = f"{collection_path('v1', 'Pod', pod['metadata']['namespace'])}/{pod['metadata']['name']}/log"
    try:
        text = connection.text(path, {"container": CONTAINER, "limitBytes": _LOG_BYTES})
    except ClusterError as error:
        logger.debug("the log of %s cannot be read: %s", pod["metadata"]["name"], error.problem)
        return EngineLog()
    return read_log(text.splitlines())
