"""An endpoint as it stands in the cluster: its Service, its revisions, and which of them serves.

The cluster is the only memory. The Service's selector says which revision serves, its annotations say since when and
which one served before; nothing is kept anywhere else, so every run starts from what is really there.
"""

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from streamway.cluster import RELEASE, RELEASE_URI, REVISION, ClusterConnection, Manifest
from streamway.errors import ClusterError
from streamway.server.apply import apply, collection_path, delete, scale
from streamway.server.diagnose import is_ready
from streamway.server.kit_offer import withdraw_kit
from streamway.server.manifests import (
    FIELD_MANAGER,
    INSTANCE,
    MANAGED_BY,
    MODEL,
    REPLICAS,
    SERVED_MODEL,
    revision_name,
    service_manifest,
)

logger = logging.getLogger("streamway.server")

ACTIVE_SINCE = "streamway/active-since"
PREVIOUS = "streamway/previous-revision"
EARLIER = "streamway/earlier-revisions"
KEEP_UNTIL = "streamway/keep-previous-until"
PROOF = "streamway/last-smoke-test"
TESTED_AT = "streamway/last-smoke-test-at"
FIGURES = "streamway/last-figures"
# What is remembered of the revision before, for when it serves again.
_OF_PREVIOUS = {
    PROOF: "streamway/previous-smoke-test",
    TESTED_AT: "streamway/previous-smoke-test-at",
    FIGURES: "streamway/previous-figures",
}
STRATEGY = "streamway/strategy"
KEEP_SECONDS = "streamway/keep-seconds"
STOPPER_IMAGE = "streamway/stopper-image"


@dataclass(frozen=True, kw_only=True)
class Revision:
    """One revision of an endpoint.

    Args:
        name: Its short name, such as `a1b2c3d-0f9e8`.
        deployment: Its Deployment, as it stands.
    """

    name: str
    deployment: Manifest

    @property
    def deployment_name(self) -> str:
        return str(self.deployment["metadata"]["name"])

    @property
    def uid(self) -> str:
        """What tells it from another Deployment of the same name."""
        return str(self.deployment["metadata"]["uid"])

    @property
    def replicas(self) -> int:
        """Pods it is asked to have now."""
        return int((self.deployment.get("spec") or {}).get("replicas", 1))

    @property
    def serving_replicas(self) -> int:
        """Pods it has when it serves."""
        return int(self._annotation(REPLICAS) or 1)

    @property
    def ready_replicas(self) -> int:
        return int((self.deployment.get("status") or {}).get("readyReplicas") or 0)

    @property
    def ready(self) -> bool:
        return self.replicas > 0 and is_ready(self.deployment)

    @property
    def commit_sha(self) -> str:
        return self._annotation(RELEASE)

    @property
    def model_id(self) -> str:
        return self._annotation(MODEL)

    @property
    def release_uri(self) -> str:
        return self._annotation(RELEASE_URI)

    @property
    def served_model_name(self) -> str:
        return self._annotation(SERVED_MODEL)

    @property
    def created(self) -> str:
        return str(self.deployment["metadata"].get("creationTimestamp", ""))

    def _annotation(self, key: str) -> str:
        return str((self.deployment["metadata"].get("annotations") or {}).get(key, ""))


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """What there is of an endpoint.

    Args:
        namespace: Where.
        name: Its name.
        service: Its Service; None before the first revision has answered.
        revisions: Every revision, by name.
    """

    namespace: str
    name: str
    service: Manifest | None
    revisions: Mapping[str, Revision] = field(default_factory=dict)

    @property
    def active(self) -> str:
        """Name of the revision that the Service selects; empty for none."""
        selector = ((self.service or {}).get("spec") or {}).get("selector") or {}
        return str(selector.get(REVISION, ""))

    @property
    def active_revision(self) -> Revision | None:
        return self.revisions.get(self.active)

    @property
    def previous(self) -> str:
        """Name of the revision that served before; empty for none."""
        return self.annotations.get(PREVIOUS, "")

    @property
    def earlier(self) -> frozenset[str]:
        """Names of the revisions that are there and have served, before the previous one did."""
        return frozenset(self.annotations.get(EARLIER, "").split(",")) & self.revisions.keys()

    @property
    def figures(self) -> dict[str, float]:
        """What the last smoke test measured."""
        try:
            return {str(name): float(value) for name, value in json.loads(self.annotations.get(FIGURES, "{}")).items()}
        except (ValueError, TypeError, AttributeError):
            return {}

    @property
    def annotations(self) -> dict[str, str]:
        """Ours, on the Service."""
        found = ((self.service or {}).get("metadata") or {}).get("annotations") or {}
        return {key: str(value) for key, value in found.items() if key.startswith("streamway/")}


def read_endpoint(connection: ClusterConnection, namespace: str, name: str) -> Endpoint:
    """Read an endpoint from the cluster."""
    service = connection.find(f"{collection_path('v1', 'Service', namespace)}/{name}")
    if service is not None and not _is_ours(service):
        service = None
    found = connection.get(
        collection_path("apps/v1", "Deployment", namespace),
        {"labelSelector": f"{INSTANCE}={name},{MANAGED_BY}={FIELD_MANAGER}"},
    )
    revisions = {}
    for item in found.get("items") or ():
        if revision := (item["metadata"].get("labels") or {}).get(REVISION):
            revisions[revision] = Revision(name=revision, deployment=item)
    return Endpoint(namespace=namespace, name=name, service=service, revisions=revisions)


def point_service(
    connection: ClusterConnection,
    endpoint: Endpoint,
    revision: str,
    *,
    force: bool = False,
    keep_until: str = "",
    proof: str = "",
    figures: Mapping[str, float] | None = None,
    forget_previous: bool = False,
) -> bool:
    """Let the endpoint's Service select a revision; True where that changed anything.

    The one act by which traffic moves: a single apply of a single object, so there is no moment between.
    """
    annotations = endpoint.annotations
    if revision != endpoint.active:
        annotations = {
            ACTIVE_SINCE: time_text(),
            PREVIOUS: endpoint.active,
            EARLIER: ",".join(sorted(earlier_after_move(endpoint, revision))),
            KEEP_UNTIL: keep_until,
            **_proofs_after_move(annotations, back=revision == endpoint.previous),
        }
    if proof:
        annotations |= {PROOF: proof, TESTED_AT: time_text()}
        annotations |= {FIGURES: json.dumps(dict(figures or {}), sort_keys=True) if figures else ""}
    if forget_previous:
        annotations |= dict.fromkeys((PREVIOUS, *_OF_PREVIOUS.values()), "")
    annotations = {key: value for key, value in annotations.items() if value}
    manifest = service_manifest(endpoint.namespace, endpoint.name, revision=revision, annotations=annotations)
    applied = apply(connection, manifest, force=force)
    if applied.action != "unchanged":
        logger.info("Service %s now selects revision %s", endpoint.name, revision)
    return applied.action != "unchanged"


def earlier_after_move(endpoint: Endpoint, revision: str) -> frozenset[str]:
    """Names of the revisions that will have served earlier than the previous one, once a revision serves."""
    served = endpoint.earlier | ({endpoint.previous} & endpoint.revisions.keys())
    return served - {revision, endpoint.active}


def _proofs_after_move(annotations: Mapping[str, str], *, back: bool) -> dict[str, str]:
    """What the revision that served had proved becomes that of the previous one; going back takes up what it had."""
    kept = {was: annotations.get(key, "") for key, was in _OF_PREVIOUS.items()}
    return kept | ({key: annotations.get(was, "") for key, was in _OF_PREVIOUS.items()} if back else {})


def open_candidate(
    connection: ClusterConnection,
    endpoint: Endpoint,
    revision: str,
    *,
    strategy: str,
    keep_seconds: float,
    stopper_image: str,
) -> str:
    """Give a revision that does not serve yet a Service of its own; return its name.

    The Service remembers how the revision is to take over, for whoever proves it later.
    """
    name = revision_name(endpoint.name, revision)
    annotations = {STRATEGY: strategy, KEEP_SECONDS: f"{keep_seconds:g}", STOPPER_IMAGE: stopper_image}
    apply(
        connection,
        service_manifest(endpoint.namespace, endpoint.name, revision=revision, name=name, annotations=annotations),
    )
    return name


def close_candidate(connection: ClusterConnection, endpoint: Endpoint, revision: str) -> None:
    """Remove the Service that open_candidate made."""
    delete(connection, "v1", "Service", endpoint.namespace, revision_name(endpoint.name, revision))


def remove_revision(connection: ClusterConnection, endpoint: Endpoint, revision: str) -> None:
    """Delete a revision that does not serve, and its own Service."""
    close_candidate(connection, endpoint, revision)
    delete(connection, "apps/v1", "Deployment", endpoint.namespace, revision_name(endpoint.name, revision))
    withdraw_kit(connection, endpoint.namespace, endpoint.name, revision)


def stop_revision(
    connection: ClusterConnection, endpoint: Endpoint, revision: Revision, *, timeout_seconds: float
) -> None:
    """Scale a revision to nothing and wait until its pods, and so its GPUs, are gone.

    Raises:
        ClusterError: a pod is still there after `timeout_seconds`.
    """
    # Not asked whether it has any: it may have been brought up since it was read.
    scale(connection, endpoint.namespace, revision.deployment_name, 0)
    await_no_pods(connection, endpoint, revision.name, timeout_seconds=timeout_seconds)


def await_no_pods(connection: ClusterConnection, endpoint: Endpoint, revision: str, *, timeout_seconds: float) -> None:
    """Wait until a revision has no pod left; what has ended and is only kept as a record does not count.

    Raises:
        ClusterError: a pod is still there after `timeout_seconds`.
    """
    deadline = time.monotonic() + timeout_seconds
    while pods := [pod for pod in _pods_of(connection, endpoint, revision) if not _is_record(pod)]:
        if time.monotonic() > deadline:
            names = ", ".join(pod["metadata"]["name"] for pod in pods)
            raise ClusterError(
                f"Pods of revision {revision} are still stopping after {timeout_seconds:.0f} s: {names}.",
                next_step="Look at what holds them: kubectl describe pod; then run again.",
            )
        time.sleep(0.5)


def recorded_pods(connection: ClusterConnection, endpoint: Endpoint, revision: str) -> frozenset[str]:
    """Uids of a revision's pods that have ended, and say nothing of how it starts from now on."""
    if revision not in endpoint.revisions:
        return frozenset()
    return frozenset(str(pod["metadata"]["uid"]) for pod in _pods_of(connection, endpoint, revision) if _is_record(pod))


def _pods_of(connection: ClusterConnection, endpoint: Endpoint, revision: str) -> list[Manifest]:
    query = {"labelSelector": f"{INSTANCE}={endpoint.name},{REVISION}={revision}"}
    return list(connection.get(collection_path("v1", "Pod", endpoint.namespace), query).get("items") or ())


def _is_record(pod: Manifest) -> bool:
    """Whether a pod holds nothing any more: an evicted one is replaced, and kept as Failed until it is collected."""
    ended = (pod.get("status") or {}).get("phase") in {"Failed", "Succeeded"}
    return ended and not pod["metadata"].get("deletionTimestamp")


def time_text(moment: datetime | None = None) -> str:
    """A time, as Kubernetes writes it; now by default."""
    return (moment or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%SZ")


def _is_ours(item: Manifest) -> bool:
    return (item["metadata"].get("labels") or {}).get(MANAGED_BY) == FIELD_MANAGER
