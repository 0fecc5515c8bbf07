"""What is done to an endpoint after its rollout: judge a held revision, go back, look, take it down."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from streamway.cluster import ClusterConnection, connect
from streamway.errors import ApiServerError, ClusterError
from streamway.server import stopper
from streamway.server.apply import collection_path, delete, scale
from streamway.server.endpoint import (
    ACTIVE_SINCE,
    KEEP_SECONDS,
    KEEP_UNTIL,
    PROOF,
    STOPPER_IMAGE,
    STRATEGY,
    TESTED_AT,
    Endpoint,
    Revision,
    await_no_pods,
    close_candidate,
    point_service,
    read_endpoint,
    remove_revision,
)
from streamway.server.engine import PORT
from streamway.server.kit import DropKit
from streamway.server.kit_offer import withdraw_kits
from streamway.server.lease import Holding, hold_endpoint
from streamway.server.manifests import FIELD_MANAGER, INSTANCE, MANAGED_BY, revision_name
from streamway.server.rollout import Patience
from streamway.server.switch import Plan, Switched, Verify, promote, return_to, roll_out, settle_previous, withdraw

logger = logging.getLogger("streamway.server")

# A revision that ran before, with its image on the node perhaps, and weights to stream again.
_RETURN_SECONDS = 1800.0
_DISAPPEAR_SECONDS = 180.0


@dataclass(frozen=True, kw_only=True)
class RevisionStatus:
    """One revision, for people.

    Args:
        name: Its short name.
        role: `active`, `previous`, `candidate`, `earlier` for one that served before the previous one, or `stray` for
            one that never served and that an interrupted run left; the next rollout removes these two.
        model_id: Hugging Face id of its model.
        served_model_name: The model's name in the API.
        commit_sha: The commit it serves.
        release_uri: Where its weights come from.
        image: Its engine's image.
        replicas: Pods it is asked to have.
        ready: Pods that are ready.
        created: When it was first applied.
    """

    name: str
    role: str
    model_id: str
    served_model_name: str
    commit_sha: str
    release_uri: str
    image: str
    replicas: int
    ready: int
    created: str


@dataclass(frozen=True, kw_only=True)
class EndpointStatus:
    """An endpoint, for people.

    Args:
        name: Its name.
        namespace: Its namespace.
        active: Revision that the Service selects; empty for none.
        previous: Revision that served before it; empty for none.
        active_since: When the Service began to select it.
        keep_previous_until: Until when the previous one is kept running; empty where it is not.
        stops_by_itself: Whether the cluster stops it then, without a run or a command; None where that is not known.
        last_smoke_test: What the last smoke test said that the active revision has passed.
        tested_at: When that was.
        last_figures: What it measured.
        revisions: All of them, the active one first.
    """

    name: str
    namespace: str
    active: str
    previous: str
    active_since: str
    keep_previous_until: str
    stops_by_itself: bool | None
    last_smoke_test: str
    tested_at: str
    last_figures: Mapping[str, float]
    revisions: tuple[RevisionStatus, ...]


def read_status(*, name: str, namespace: str, cluster: str = "") -> EndpointStatus:
    """Look at an endpoint, and change nothing.

    Raises:
        ClusterError: there is no such endpoint.
    """
    connection = connect(cluster)
    return _status(connection, _existing(connection, namespace, name))


def promote_revision(
    *,
    name: str,
    namespace: str,
    revision: str,
    proof: str = "",
    figures: Mapping[str, float] | None = None,
    cluster: str = "",
    holding: Holding | None = None,
) -> EndpointStatus:
    """Let the Service select a revision that was held and has proved itself.

    Args:
        name: Name of the endpoint.
        namespace: Its namespace.
        revision: The revision; where it serves already, only the proof is noted.
        proof: What the smoke test said, in a few words.
        figures: What it measured, for the next release to be compared with.
        cluster: As in `streamway.cluster.connect`.
        holding: The endpoint, where the caller holds it already.

    Raises:
        ClusterError: there is no such revision, or it is not ready, or another run has taken the endpoint over.
    """
    with _changing(cluster, namespace, name, holding) as (connection, endpoint, holding):
        candidate = _known(endpoint, revision)
        # By its name, because the one that served before may be the one that is to serve again.
        settle_previous(connection, endpoint, wanted=revision)
        if endpoint.active == revision:
            point_service(connection, endpoint, revision, proof=proof, figures=figures)
            close_candidate(connection, endpoint, revision)
        else:
            if not candidate.ready:
                raise ClusterError(
                    f"Revision {revision} of endpoint {name} is not ready: {candidate.ready_replicas} of "
                    f"{candidate.serving_replicas} pods are.",
                    next_step="Deploy it again; it is taken up where it stands.",
                )
            plan = _held_plan(connection, endpoint, revision, holding)
            promote(connection, endpoint, plan, endpoint.active_revision, proof=proof, figures=figures)
        return _status(connection, read_endpoint(connection, namespace, name))


def reject_revision(
    *,
    name: str,
    namespace: str,
    revision: str,
    cluster: str = "",
    unschedulable_seconds: float = 20,
    holding: Holding | None = None,
) -> str:
    """Go back to the revision before, because this one has answered wrongly; say what serves now.

    Args:
        name: Name of the endpoint.
        namespace: Its namespace.
        revision: The revision that failed, whether it was held or serves already.
        cluster: As in `streamway.cluster.connect`.
        unschedulable_seconds: How long the one before may look for a node while this one still serves; then it takes
            this one's.
        holding: The endpoint, where the caller holds it already.

    Raises:
        ClusterError: there is no such endpoint, or another run has taken it over.
    """
    with _changing(cluster, namespace, name, holding) as (connection, endpoint, _holding):
        if endpoint.active == revision:
            return _leave_active(connection, endpoint, revision, unschedulable_seconds)
        old = endpoint.active_revision
        if old is None:
            withdraw(connection, endpoint, revision)
            outcome = f"Nothing serves: it was the first revision; revision {revision} was removed."
        elif old.replicas:
            withdraw(connection, endpoint, revision)
            outcome = f"Revision {old.name} serves on; revision {revision} was removed."
        else:
            outcome = return_to(connection, endpoint, revision, old, Patience(deadline_seconds=_RETURN_SECONDS))
        logger.warning("%s", outcome)
        return outcome


def abandon_revision(
    *, name: str, namespace: str, revision: str, cluster: str = "", holding: Holding | None = None
) -> str:
    """Withdraw a held revision and ask the one before to serve, without waiting for it; say so.

    For whoever is stopped in the middle of a proof, and has seconds left.

    Args:
        name: Name of the endpoint.
        namespace: Its namespace.
        revision: The revision that is held.
        cluster: As in `streamway.cluster.connect`.
        holding: The endpoint, where the caller holds it already.

    Raises:
        ClusterError: there is no such endpoint, or another run has taken it over.
    """
    with _changing(cluster, namespace, name, holding) as (connection, endpoint, _holding):
        if endpoint.active == revision:
            return f"Revision {revision} serves on."
        withdraw(connection, endpoint, revision)
        old = endpoint.active_revision
        if old is None:
            return f"Revision {revision} was withdrawn; nothing serves."
        if old.replicas:
            return f"Revision {revision} was withdrawn; revision {old.name} serves on."
        scale(connection, namespace, old.deployment_name, old.serving_replicas)
        return f"Revision {revision} was withdrawn; revision {old.name} was asked to serve again."


def rollback(
    *,
    name: str,
    namespace: str,
    revision: str = "",
    cluster: str = "",
    strategy: str = "auto",
    verify: Verify | None = None,
    drop_kit: DropKit | None = None,
    timeout_seconds: float = _RETURN_SECONDS,
    unschedulable_seconds: float = 60,
) -> EndpointStatus:
    """Let an earlier revision serve again.

    Args:
        name: Name of the endpoint.
        namespace: Its namespace.
        revision: Which one; empty for the one that served before.
        cluster: As in `streamway.cluster.connect`.
        strategy: As in `deploy_server`.
        verify: Proves it before the Service selects it.
        drop_kit: Told of a warm-start kit that its engine fails with and starts without.
        timeout_seconds: Longest wait.
        unschedulable_seconds: Longest wait for a node where no autoscaler says that it adds one.

    Raises:
        ClusterError: there is no such revision.
        RolloutError: it does not become ready; the present one serves on.
    """
    with _changing(cluster, namespace, name) as (connection, endpoint, holding):
        wanted = revision or endpoint.previous
        if not wanted:
            raise ClusterError(
                f"Endpoint {name} has no revision to go back to; {endpoint.active or 'nothing'} serves.",
                next_step="Deploy the release that should serve.",
            )
        _known(endpoint, wanted)
        plan = Plan(
            revision=wanted,
            strategy=strategy,
            port=PORT,
            patience=Patience(deadline_seconds=timeout_seconds, unschedulable_seconds=unschedulable_seconds),
            verify=verify,
            drop_kit=drop_kit,
            still_ours=holding.check,
        )
        done: Switched = roll_out(connection, endpoint, plan)
        logger.info("endpoint %s serves revision %s again", name, wanted)
        if done.gap:
            logger.info("it was without a server while the two changed places")
        return _status(connection, read_endpoint(connection, namespace, name))


def retire_server(*, name: str, namespace: str, cluster: str = "") -> tuple[str, ...]:
    """Delete an endpoint with all its revisions; wait until its pods are gone. What is not there is fine.

    Returns:
        What was deleted, as `Kind name`.
    """
    connection = connect(cluster)
    gone = []
    with hold_endpoint(connection, namespace, name):
        endpoint = read_endpoint(connection, namespace, name)
        if endpoint.service is not None:
            delete(connection, "v1", "Service", namespace, name)
            gone.append(f"Service {name}")
        for revision in endpoint.revisions.values():
            remove_revision(connection, endpoint, revision.name)
            gone.append(f"Deployment {revision.deployment_name}")
        gone += _delete_ours(connection, namespace, name)
        withdraw_kits(connection, namespace, name)
        for revision in endpoint.revisions.values():
            await_no_pods(connection, endpoint, revision.name, timeout_seconds=_DISAPPEAR_SECONDS)
    return tuple(gone)


def _delete_ours(connection: ClusterConnection, namespace: str, name: str) -> list[str]:
    gone = []
    query = {"labelSelector": f"{INSTANCE}={name},{MANAGED_BY}={FIELD_MANAGER}"}
    for version, kind in (("v1", "Service"), ("policy/v1", "PodDisruptionBudget"), ("v1", "ServiceAccount")):
        found = connection.get(collection_path(version, kind, namespace), query)
        for item in found.get("items") or ():
            delete(connection, version, kind, namespace, item["metadata"]["name"])
            gone.append(f"{kind} {item['metadata']['name']}")
    return gone


@contextmanager
def _changing(
    cluster: str, namespace: str, name: str, held: Holding | None = None
) -> Iterator[tuple[ClusterConnection, Endpoint, Holding]]:
    connection = connect(cluster)
    _existing(connection, namespace, name)
    with hold_endpoint(connection, namespace, name) if held is None else nullcontext(held) as holding:
        holding.check()
        yield connection, read_endpoint(connection, namespace, name), holding


def _existing(connection: ClusterConnection, namespace: str, name: str) -> Endpoint:
    endpoint = read_endpoint(connection, namespace, name)
    if endpoint.service is None and not endpoint.revisions:
        raise ClusterError(
            f"There is no endpoint {name} in namespace {namespace} of {connection.name}.",
            next_step=f"Check the name and the namespace: kubectl get services -A -l {MANAGED_BY}={FIELD_MANAGER}.",
        )
    return endpoint


def _known(endpoint: Endpoint, revision: str) -> Revision:
    if revision not in endpoint.revisions:
        raise ClusterError(
            f"Endpoint {endpoint.name} has no revision {revision!r}, it has {', '.join(endpoint.revisions) or 'none'}.",
            next_step="Choose one of these, or deploy the release again.",
        )
    return endpoint.revisions[revision]


def _held_plan(connection: ClusterConnection, endpoint: Endpoint, revision: str, holding: Holding) -> Plan:
    """How a held revision is to take over, as its own Service remembers."""
    path = f"{collection_path('v1', 'Service', endpoint.namespace)}/{revision_name(endpoint.name, revision)}"
    annotations = ((connection.find(path) or {}).get("metadata") or {}).get("annotations") or {}
    return Plan(
        revision=revision,
        strategy=annotations.get(STRATEGY, "surge"),
        port=PORT,
        patience=Patience(deadline_seconds=_RETURN_SECONDS),
        keep_seconds=float(annotations.get(KEEP_SECONDS, "3600")),
        stopper_image=annotations.get(STOPPER_IMAGE, stopper.STOPPER_IMAGE),
        still_ours=holding.check,
    )


def _leave_active(
    connection: ClusterConnection, endpoint: Endpoint, revision: str, unschedulable_seconds: float
) -> str:
    """The revision that answers wrongly is the one that serves: the one before takes over, without a proof."""
    before = endpoint.revisions.get(endpoint.previous)
    if before is None:
        outcome = f"Revision {revision} goes on serving, although it answers wrongly: there is none to go back to."
        logger.warning("%s", outcome)
        return outcome
    plan = Plan(
        revision=before.name,
        strategy="auto",
        port=PORT,
        patience=Patience(deadline_seconds=_RETURN_SECONDS, unschedulable_seconds=unschedulable_seconds),
    )
    try:
        roll_out(connection, endpoint, plan)
    except ApiServerError:
        raise
    except ClusterError as error:
        return f"Revision {revision} goes on serving, although it answers wrongly: {error.problem}"
    after = read_endpoint(connection, endpoint.namespace, endpoint.name)
    point_service(connection, after, before.name, forget_previous=True)
    remove_revision(connection, after, revision)
    outcome = f"Revision {before.name} serves again; revision {revision} was removed."
    logger.warning("%s", outcome)
    return outcome


def _status(connection: ClusterConnection, endpoint: Endpoint) -> EndpointStatus:
    annotations = endpoint.annotations
    previous = endpoint.revisions.get(endpoint.previous)
    kept_until = annotations.get(KEEP_UNTIL, "") if previous is not None and previous.replicas else ""
    rows = [_revision_status(endpoint, revision) for revision in endpoint.revisions.values()]
    order = ("active", "candidate", "previous", "earlier", "stray")
    return EndpointStatus(
        name=endpoint.name,
        namespace=endpoint.namespace,
        active=endpoint.active,
        previous=endpoint.previous,
        active_since=annotations.get(ACTIVE_SINCE, ""),
        keep_previous_until=kept_until,
        stops_by_itself=stopper.has_stopper(connection, endpoint, endpoint.previous) if kept_until else None,
        last_smoke_test=annotations.get(PROOF, ""),
        tested_at=annotations.get(TESTED_AT, ""),
        last_figures=endpoint.figures,
        revisions=tuple(sorted(rows, key=lambda row: order.index(row.role))),
    )


def _revision_status(endpoint: Endpoint, revision: Revision) -> RevisionStatus:
    containers = revision.deployment["spec"]["template"]["spec"]["containers"]
    return RevisionStatus(
        name=revision.name,
        role=_role(endpoint, revision),
        model_id=revision.model_id,
        served_model_name=revision.served_model_name,
        commit_sha=revision.commit_sha,
        release_uri=revision.release_uri,
        image=str(containers[0]["image"]),
        replicas=revision.replicas,
        ready=revision.ready_replicas,
        created=revision.created,
    )


def _role(endpoint: Endpoint, revision: Revision) -> str:
    if revision.name == endpoint.active:
        return "active"
    if revision.name == endpoint.previous:
        return "previous"
    if revision.replicas:
        return "candidate"
    return "earlier" if revision.name in endpoint.earlier else "stray"
