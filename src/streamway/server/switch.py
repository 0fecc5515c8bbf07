"""How a new revision takes the place of the old one, and how the old one comes back.

Whatever the strategy, the order is: the new revision runs, has answered (where the caller can tell), and only then the
Service moves. The strategies differ in what becomes of the old revision's GPUs meanwhile.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from streamway.cluster import ClusterConnection, Manifest
from streamway.errors import ClusterError, ClusterUnreachableError, RolloutError, StreamwayError
from streamway.server.apply import apply, check_scale, scale
from streamway.server.endpoint import (
    KEEP_UNTIL,
    Endpoint,
    Revision,
    await_no_pods,
    close_candidate,
    earlier_after_move,
    open_candidate,
    point_service,
    read_endpoint,
    recorded_pods,
    remove_revision,
    stop_revision,
    time_text,
)
from streamway.server.kit import DropKit
from streamway.server.kit_offer import take_back_kit
from streamway.server.rollout import Patience, Phase, Rollout, await_rollout
from streamway.server.stopper import STOPPER_IMAGE, leave_stopper, remove_stopper
from streamway.storage.segments import Progress

logger = logging.getLogger("streamway.server")

# A pod's drain and grace period, and what the node needs to notice.
_STOP_SECONDS = 180.0
# Ends of a rollout that a wrong warm-start kit could be the reason for.
_ENGINE_FAILS = frozenset({"crash_loop", "out_of_memory", "failing_probe"})


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A revision that runs and is to be proved before it serves.

    Args:
        namespace: Of the endpoint.
        service: Name of a Service that selects this revision only.
        port: Its port.
        revision: Its name.
    """

    namespace: str
    service: str
    port: int
    revision: str


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What a revision has proved, for the endpoint to remember.

    Args:
        said: In a few words.
        figures: What was measured, for the next release to be compared with.
    """

    said: str
    figures: Mapping[str, float] = field(default_factory=dict)


Verify = Callable[[Candidate], object]
"""Raises where a revision does not answer correctly; the endpoint remembers what it returns where that is a `Proof`."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be done for one rollout.

    Args:
        revision: The revision that is to serve.
        deployment: Its manifest; None for one that exists already and only has to run again.
        more: What belongs to the revision beside it, applied once it is ready.
        strategy: `recreate`, `surge`, `blue_green`, or `auto`: surge where a node is found, else recreate.
        port: Port of the engine.
        patience: How long to wait for what.
        size_bytes: Bytes of the release, for progress.
        keep_seconds: How long `blue_green` keeps the old revision running; 0 keeps it no longer.
        stopper_image: Image with python3, in which the cluster stops it when its time is over.
        verify: Proves the new revision; it raises where the answer is wrong.
        hold: Leave the Service where it is after a successful rollout.
        force: Take fields over from other managers.
        still_ours: Raises where another run has taken the endpoint over.
        drop_kit: Told of a warm-start kit that the engine starts without, and not with.
        on_progress: Told how many bytes of the weights have come.
    """

    revision: str
    deployment: Manifest | None = None
    more: Sequence[Manifest] = ()
    strategy: str
    port: int
    patience: Patience
    size_bytes: int = 0
    keep_seconds: float = 3600
    stopper_image: str = STOPPER_IMAGE
    verify: Verify | None = None
    hold: bool = False
    force: bool = False
    still_ours: Callable[[], None] = lambda: None
    drop_kit: DropKit | None = None
    on_progress: Progress | None = None


@dataclass(frozen=True, kw_only=True)
class Switched:
    """How it went.

    Args:
        rollout: How the new revision became ready.
        service: The Service to ask: the endpoint's, or the revision's own while traffic is held.
        changed: Whether anything in the cluster had to change.
        gap: Whether the endpoint was without a server for a while.
    """

    rollout: Rollout
    service: str
    changed: bool
    gap: bool = False


def roll_out(connection: ClusterConnection, endpoint: Endpoint, plan: Plan) -> Switched:
    """Bring a revision up by the plan's strategy and let the Service select it; on failure, the old one serves on.

    Raises:
        RolloutError: the new revision does not become ready; says what was returned to.
        StreamwayError: what `verify` raised, after the old revision has been returned to.
    """
    endpoint = _spare_wanted(connection, endpoint, plan.revision)
    _remove_strays(connection, endpoint, plan.revision)
    settle_previous(connection, endpoint, wanted=plan.revision)
    old = endpoint.active_revision if endpoint.active != plan.revision else None
    # What a killed run has stopped serves on beside nothing; it is what a failure returns to.
    if old is None or (old.replicas and plan.strategy in {"surge", "blue_green"}):
        return _beside(connection, endpoint, plan, old)
    if plan.strategy == "recreate" or not old.replicas:
        return _in_place(connection, endpoint, plan, old)
    try:
        return _beside(connection, endpoint, replace(plan, strategy="surge"), old)
    except RolloutError as error:
        if not _would_gpus_help(error):
            raise
        logger.warning("no room for a second server beside the old one: %s", error.problem)
    return _in_place(connection, endpoint, plan, old)


def _spare_wanted(connection: ClusterConnection, endpoint: Endpoint, wanted: str) -> Endpoint:
    """See that a revision which is kept, and is to serve again, is not stopped meanwhile; return the endpoint anew."""
    if wanted != endpoint.previous or not endpoint.annotations.get(KEEP_UNTIL):
        return endpoint
    remove_stopper(connection, endpoint, wanted)
    # It may have been stopped a moment ago.
    return read_endpoint(connection, endpoint.namespace, endpoint.name)


def _would_gpus_help(error: RolloutError) -> bool:
    """Whether a revision that found no node would find one if the old revision gave its GPUs away.

    The scheduler says `Insufficient` of nodes that lack nothing else; of those in a wrong zone, or without the
    accelerator, it says other things, and then a gap would be for nothing.
    """
    if error.reason == "unschedulable":
        return "Insufficient" in error.problem or "nodes are available" not in error.problem
    return error.reason == "quota"


def promote(
    connection: ClusterConnection,
    endpoint: Endpoint,
    plan: Plan,
    old: Revision | None,
    *,
    proof: str = "",
    figures: Mapping[str, float] | None = None,
) -> bool:
    """Move the Service to the new revision, then settle the old one by the strategy."""
    plan.still_ours()
    keep_until, keeps = "", plan.strategy == "blue_green" and plan.keep_seconds > 0
    if old is not None and keeps:
        until = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=plan.keep_seconds)
        keep_until = time_text(until)
        if old.replicas:
            leave_stopper(connection, endpoint, old, until, image=plan.stopper_image)
    changed = point_service(
        connection, endpoint, plan.revision, force=plan.force, keep_until=keep_until, proof=proof, figures=figures
    )
    close_candidate(connection, endpoint, plan.revision)
    if endpoint.active != plan.revision:
        _stop_earlier(connection, endpoint, plan.revision)
    if old is not None and not keeps and old.replicas:
        scale(connection, endpoint.namespace, old.deployment_name, 0)
    return changed


def _stop_earlier(connection: ClusterConnection, endpoint: Endpoint, revision: str) -> None:
    """Stop what was kept for going back to, where going back leads to another revision now."""
    for name in sorted(earlier_after_move(endpoint, revision)):
        if endpoint.revisions[name].replicas:
            logger.info("revision %s was kept for going back to, which is %s now; stopping it", name, endpoint.active)
            if name == endpoint.previous and endpoint.annotations.get(KEEP_UNTIL):
                remove_stopper(connection, endpoint, name)
            scale(connection, endpoint.namespace, endpoint.revisions[name].deployment_name, 0)


def settle_previous(connection: ClusterConnection, endpoint: Endpoint, *, wanted: str = "") -> None:
    """Stop the revision that served before, once the time that blue_green kept it for is over.

    A rollout, which names the revision that it wants, also stops one that was not kept for any time: a run that was
    killed as soon as the Service had moved did not come to that.
    """
    until, previous = endpoint.annotations.get(KEEP_UNTIL, ""), endpoint.revisions.get(endpoint.previous)
    if previous is None or not previous.replicas or previous.name == wanted:
        return
    if until and until < time_text():
        logger.info("revision %s was kept until %s; stopping it", previous.name, until)
        remove_stopper(connection, endpoint, previous.name)
    elif wanted and not until:
        logger.info("revision %s still runs, and is not to be kept; stopping it", previous.name)
        # Someone may have begun to prove it again.
        close_candidate(connection, endpoint, previous.name)
    else:
        return
    scale(connection, endpoint.namespace, previous.deployment_name, 0)


def _beside(connection: ClusterConnection, endpoint: Endpoint, plan: Plan, old: Revision | None) -> Switched:
    """The new revision runs beside the old one, which notices nothing."""
    if old is not None:
        logger.info("revision %s comes up beside %s, which serves on", plan.revision, old.name)
    try:
        changed, rollout = _run_new(connection, endpoint, plan)
        service, proof = _prove(connection, endpoint, plan)
    except KeyboardInterrupt:
        if endpoint.active != plan.revision:
            logger.warning("stopped: %s", _withdrawal(connection, endpoint, plan.revision))
        raise
    except Exception as error:
        # Whatever it is, a mistake of ours too: users must not be left with what has not answered, or with nothing.
        if endpoint.active == plan.revision:
            raise
        if old is not None and isinstance(error, RolloutError) and _would_gpus_help(error):
            error.next_step += f" Or let it take the GPUs of {old.name}, with a gap: strategy recreate, or auto."
        serving = f"Revision {old.name} serves on" if old is not None else "Nothing serves: it was the first revision"
        outcome = f"{serving}; {_withdrawal(connection, endpoint, plan.revision)}."
        raise _with_outcome(error, outcome) from error
    if not plan.hold:
        changed = promote(connection, endpoint, plan, old, proof=proof.said, figures=proof.figures) or changed
    elif endpoint.active == plan.revision:
        # It was proved and promoted by a run that was killed before it could close it.
        close_candidate(connection, endpoint, plan.revision)
    return Switched(rollout=rollout, service=service, changed=changed)


def _in_place(connection: ClusterConnection, endpoint: Endpoint, plan: Plan, old: Revision) -> Switched:
    """The old revision gives its GPUs to the new one; it comes back if the new one fails."""
    if old.replicas:
        _have_judged(connection, plan, old)
    logger.warning(
        "endpoint %s will not answer from now until revision %s is ready: it takes the GPUs of %s",
        endpoint.name,
        plan.revision,
        old.name,
    )
    began = time.monotonic()
    try:
        stop_revision(connection, endpoint, old, timeout_seconds=_STOP_SECONDS)
        stopped = Phase(name="stop old revision", seconds=round(time.monotonic() - began, 3))
        _changed, rollout = _run_new(connection, endpoint, plan)
        service, proof = _prove(connection, endpoint, plan)
    except KeyboardInterrupt:
        _give_way(connection, endpoint, plan.revision, old)
        raise
    except Exception as error:
        outcome = return_to(connection, endpoint, plan.revision, old, plan.patience)
        raise _with_outcome(error, outcome) from error
    rollout = replace(rollout, phases=(stopped, *rollout.phases))
    if not plan.hold:
        promote(connection, endpoint, plan, old, proof=proof.said, figures=proof.figures)
    return Switched(rollout=rollout, service=service, changed=True, gap=True)


def _have_judged(connection: ClusterConnection, plan: Plan, old: Revision) -> None:
    """Have the API server judge a new revision before the old one stops for it.

    Raises:
        ClusterError: it refuses the revision; the old one serves on.
    """
    if plan.deployment is None:
        return
    try:
        # By force, because nothing is kept: whose fields they are is seen when it is applied.
        apply(connection, plan.deployment, force=True, dry_run=True)
    except ClusterUnreachableError:
        raise
    except ClusterError as error:
        # A webhook that does more than to judge is not asked without it, and refuses for that reason alone.
        if "does not support dry run" not in error.problem:
            raise _with_outcome(error, f"Revision {old.name} serves on.") from error


def return_to(
    connection: ClusterConnection, endpoint: Endpoint, revision: str, old: Revision, patience: Patience
) -> str:
    """Withdraw a revision, have the old one run again, and say how that went."""
    try:
        logger.warning("returning to revision %s", old.name)
        withdrawn = _withdrawal(connection, endpoint, revision)
        _await_gpus(connection, endpoint, revision)
    except KeyboardInterrupt:
        _give_way(connection, endpoint, revision, old)
        raise
    past = recorded_pods(connection, endpoint, old.name)
    # Whatever it was when we began, it has been stopped since.
    scale(connection, endpoint.namespace, old.deployment_name, old.serving_replicas)
    try:
        await_rollout(
            connection,
            namespace=endpoint.namespace,
            endpoint=endpoint.name,
            revision=old.name,
            deployment=old.deployment_name,
            patience=patience,
            past=past,
        )
    except StreamwayError as error:
        return f"Revision {old.name} was asked to return and is not ready either: {error.problem}"
    return f"Revision {old.name} serves again; {withdrawn}."


def _give_way(connection: ClusterConnection, endpoint: Endpoint, revision: str, old: Revision) -> None:
    """Withdraw a revision and ask the old one to serve; whoever stops a run does not wait for it to be ready."""
    logger.warning("stopped: %s", _withdrawal(connection, endpoint, revision))
    scale(connection, endpoint.namespace, old.deployment_name, old.serving_replicas)
    logger.warning("revision %s was asked to serve again", old.name)


def withdraw(connection: ClusterConnection, endpoint: Endpoint, revision: str) -> None:
    """Take a revision that failed out of the way; one that served before is kept, without pods."""
    if revision != endpoint.previous or revision not in endpoint.revisions:
        remove_revision(connection, endpoint, revision)
        return
    close_candidate(connection, endpoint, revision)
    stop_revision(connection, endpoint, endpoint.revisions[revision], timeout_seconds=_STOP_SECONDS)


def _withdrawal(connection: ClusterConnection, endpoint: Endpoint, revision: str) -> str:
    """Withdraw a revision and say so; a failure here must not hide the one that led to it."""
    try:
        withdraw(connection, endpoint, revision)
    except StreamwayError as error:
        return f"revision {revision} could not be removed: {error.problem}"
    return f"revision {revision} was removed"


def _await_gpus(connection: ClusterConnection, endpoint: Endpoint, revision: str) -> None:
    """Let a revision's pods go before others look for their GPUs; if they never go, that is found there."""
    try:
        await_no_pods(connection, endpoint, revision, timeout_seconds=_STOP_SECONDS)
    except ClusterError as error:
        logger.warning("%s", error.problem)


def _run_new(connection: ClusterConnection, endpoint: Endpoint, plan: Plan) -> tuple[bool, Rollout]:
    known = endpoint.revisions.get(plan.revision)
    past = recorded_pods(connection, endpoint, plan.revision)
    if plan.deployment is None:
        if known is None:
            raise ClusterError(
                f"Endpoint {endpoint.name} has no revision {plan.revision}.",
                next_step="Deploy the release again.",
            )
        _bring_to(connection, endpoint, known, known.serving_replicas, force=plan.force)
        return True, _await_ready(connection, endpoint, plan, known.deployment_name, known.serving_replicas, past)
    wanted = int(plan.deployment["spec"].get("replicas", known.replicas or known.serving_replicas if known else 1))
    if known is not None:
        _bring_to(connection, endpoint, known, wanted, force=plan.force)
    applied = apply(connection, plan.deployment, force=plan.force)
    rollout = _await_ready(connection, endpoint, plan, applied.name, wanted, past)
    changed = applied.action != "unchanged" or bool(known and known.replicas != wanted)
    for manifest in plan.more:
        owned = _owned_by(manifest, applied.manifest)
        changed = apply(connection, owned, force=plan.force).action != "unchanged" or changed
    return changed, rollout


def _bring_to(
    connection: ClusterConnection, endpoint: Endpoint, known: Revision, replicas: int, *, force: bool
) -> None:
    """Have a revision's number of pods; of the one that serves, another one may be someone else's decision."""
    if known.replicas == replicas:
        return
    if known.name == endpoint.active and not force:
        check_scale(known.deployment, replicas)
    scale(connection, endpoint.namespace, known.deployment_name, replicas)


def _await_ready(
    connection: ClusterConnection, endpoint: Endpoint, plan: Plan, deployment: str, replicas: int, past: frozenset[str]
) -> Rollout:
    """Wait for a revision; where its engine fails with a warm-start kit, try once without it."""

    def wait() -> Rollout:
        return await_rollout(
            connection,
            namespace=endpoint.namespace,
            endpoint=endpoint.name,
            revision=plan.revision,
            deployment=deployment,
            patience=plan.patience,
            past=past,
            size_bytes=plan.size_bytes,
            on_progress=plan.on_progress,
        )

    try:
        return wait()
    except RolloutError as error:
        fails = error.reason in _ENGINE_FAILS
        kit = take_back_kit(connection, endpoint.namespace, endpoint.name, plan.revision) if fails else None
        if kit is None:
            raise
        logger.warning(
            "the engine fails with the warm-start kit %s, so it is tried without: %s", kit.uri, error.problem
        )
    # What a kit has put in place stays as long as its pod does.
    scale(connection, endpoint.namespace, deployment, 0)
    await_no_pods(connection, endpoint, plan.revision, timeout_seconds=_STOP_SECONDS)
    scale(connection, endpoint.namespace, deployment, replicas)
    try:
        rollout = wait()
    except RolloutError as error:
        error.add_outcome("It had been tried with its warm-start kit before, and failed as well.")
        raise
    if plan.drop_kit is not None:
        plan.drop_kit(kit)
    return rollout


def _owned_by(manifest: Manifest, deployment: Manifest) -> Manifest:
    """Let something go when its Deployment goes."""
    owner = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "name": deployment["metadata"]["name"],
        "uid": deployment["metadata"]["uid"],
    }
    return {**manifest, "metadata": {**manifest["metadata"], "ownerReferences": [owner]}}


def _prove(connection: ClusterConnection, endpoint: Endpoint, plan: Plan) -> tuple[str, Proof]:
    """Have a revision proved where it does not serve yet; return the Service to ask from now on, and the proof."""
    proof = Proof(said="")
    if endpoint.active == plan.revision or (plan.verify is None and not plan.hold):
        return endpoint.name, proof
    service = open_candidate(
        connection,
        endpoint,
        plan.revision,
        strategy=plan.strategy,
        keep_seconds=plan.keep_seconds,
        stopper_image=plan.stopper_image,
    )
    if plan.verify is not None:
        candidate = Candidate(namespace=endpoint.namespace, service=service, port=plan.port, revision=plan.revision)
        found = plan.verify(candidate)
        proof = found if isinstance(found, Proof) else proof
    return service if plan.hold else endpoint.name, proof


def _remove_strays(connection: ClusterConnection, endpoint: Endpoint, wanted: str) -> None:
    """Remove revisions that neither serve, served last, nor are wanted now."""
    for name in endpoint.revisions:
        if name not in {endpoint.active, endpoint.previous, wanted}:
            served = name in endpoint.earlier
            why = f"served before {endpoint.previous}" if served else "an earlier run left unfinished"
            logger.info("removing revision %s, which %s", name, why)
            remove_revision(connection, endpoint, name)
            _await_gpus(connection, endpoint, name)


def _with_outcome(error: Exception, outcome: str) -> Exception:
    logger.warning("%s", outcome)
    if isinstance(error, StreamwayError):
        error.add_outcome(outcome)
    return error
